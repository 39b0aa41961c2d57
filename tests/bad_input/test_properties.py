"""Whatever stands in a file of knobs, of an adapter or of a checkpoint: it is read, or refused in words."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from microplane.checkpoints.adapter import load_adapter, read_method
from microplane.config.build import build, fields, place, read_yaml, set_value, to_yaml
from microplane.config.knobs import DataKnobs, GenerateKnobs, RunKnobs
from microplane.errors import AdapterError, CheckpointError, ConfigError, ModelError
from microplane.methods import METHODS, Method, make_method
from microplane.models.configs.decoder import DecoderConfig
from microplane.models.files.load import load_model
from microplane.training.resume import read_state
from tests.bad_input.kit import BASE, newest_checkpoint
from tests.tiny import LLAMA, tiny

MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(MANY, max_examples=60)

NAMES = [name for name, _ in fields(RunKnobs)] + [f"method.{name}" for m in METHODS.values() for name, _ in fields(m)]
PARTS = sorted({part for name in NAMES for part in name.split(".")} | {"name"})
TEXT = st.text(max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.dates()
    | st.sampled_from([*PARTS, "lora", "auto"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PARTS) | SCALARS, inner, max_size=4),
    max_leaves=8,
)
WRITABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
LOOKS_LIKE_A_NUMBER = st.sampled_from("1e-3 5E4 .5e1 1. 0x1f 1_000 1:30 2020-01-01 null ~ yes = <<".split())
WORDS = WRITABLE | LOOKS_LIKE_A_NUMBER | st.sampled_from(["\x85", "a\u2028b", "a\n\n b", "\ufeff", " a ", ""])


# Knobs


@MANY
@given(st.dictionaries(st.sampled_from(PARTS) | SCALARS, VALUES, max_size=4))
def test_any_mapping_gives_knobs_or_a_complaint(values):
    try:
        knobs = build(RunKnobs, values)
        make_method(knobs.method)
    except ConfigError as error:
        assert "wrong" in str(error) or "there is no such method" in str(error)


@MANY
@given(st.sampled_from(NAMES), VALUES)
def test_any_value_of_a_known_knob_gives_knobs_or_names_it(name, value):
    values: dict = {}
    place(values, name, value)
    try:
        make_method(build(RunKnobs, values).method)
    except ConfigError as error:
        assert name.split(".")[0] in str(error)


@MANY
@given(
    st.binary(max_size=80) | WRITABLE.map(str.encode) | VALUES.map(repr).map(lambda text: text.encode(errors="replace"))
)
def test_any_bytes_are_a_configuration_or_not(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    try:
        assert isinstance(read_yaml(tmp_path / "c.yaml"), dict)
    except ConfigError as error:
        assert "c.yaml" in str(error)


@MANY
@given(st.text(max_size=40) | st.builds("{}={}".format, st.sampled_from(NAMES), st.text(max_size=20)))
def test_any_assignment_is_carried_out_or_refused(assignment):
    values = {"train": {"lr": 1.0}}
    try:
        set_value(values, assignment)
    except ConfigError:
        return
    assert "=" in assignment
    with suppress(ConfigError):
        assert isinstance(build(RunKnobs, values), RunKnobs)


KNOBS = st.builds(
    RunKnobs,
    name=st.none() | WORDS,
    runs=WORDS,
    model=st.builds(lambda name: {"name": name}, WORDS),
    method=st.builds(
        lambda rank, alpha, targets: {"name": "lora", "rank": rank, "alpha": alpha, "targets": targets},
        st.integers(1, 10**9),
        st.floats(1e-30, 1e30),
        st.lists(WORDS, max_size=3),
    ),
    data=st.builds(DataKnobs, train=WORDS, system=st.none() | WORDS, limit=st.none() | st.integers(1, 10**30)),
    train=st.builds(
        lambda lr, betas, eps: {"lr": lr, "betas": betas, "eps": eps},
        st.none() | st.floats(5e-324, 1e300),
        st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        st.floats(5e-324, 1),
    ),
    eval=st.builds(lambda metrics: {"metrics": metrics}, st.lists(WORDS, max_size=3)),
)


@MANY
@given(KNOBS)
def test_knobs_that_were_written_are_read_back_equal(tmp_path, knobs):
    (tmp_path / "run.yaml").write_bytes(to_yaml(knobs).encode())
    assert build(RunKnobs, read_yaml(tmp_path / "run.yaml")) == knobs


@MANY
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)) | LOOKS_LIKE_A_NUMBER)
def test_text_in_quotes_stays_text(text):
    values: dict = {}
    set_value(values, f"data.system={json.dumps(text)}")
    assert values["data"]["system"] == text


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("5E4", 5e4), ("[.5e1, -2e+2]", [5.0, -200.0]), ("1e", "1e")]
)
def test_numbers_are_written_as_everywhere(text, value):
    values: dict = {}
    set_value(values, f"x={text}")
    assert values == {"x": value}


def test_every_knob_of_generation_is_bounded():
    for name, field in fields(GenerateKnobs):
        with pytest.raises(ConfigError, match=name):
            build(GenerateKnobs, {name: float("nan")})
        assert field.description


# Checkpoints and adapters


def spoiled(content: bytes, data: st.DataObject) -> bytes:
    """Some bytes changed, cut off or put in."""
    at = data.draw(st.integers(0, len(content)))
    kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
    piece = data.draw(st.binary(min_size=1, max_size=4))
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + piece + content[at:]
    return content[:at] + (piece if kind == "change" else b"") + content[at + len(piece) :]


@MANY
@given(st.data())
def test_a_spoiled_state_is_refused_or_the_same(here, data):
    folder = newest_checkpoint(here)
    file = folder / "state.json"
    good, content = read_state(folder), file.read_bytes()
    try:
        file.write_bytes(spoiled(content, data))
        assert read_state(folder) == good
    except CheckpointError as error:
        assert str(folder) in str(error)
    finally:
        file.write_bytes(content)


@FEW
@given(st.data(), st.sampled_from(["weights.safetensors", "optimizer.safetensors"]))
def test_a_spoiled_file_of_a_checkpoint_is_refused(here, data, name):
    folder = newest_checkpoint(here)
    content = (folder / name).read_bytes()
    other = spoiled(content, data)
    assume(other != content)
    try:
        (folder / name).write_bytes(other)
        with pytest.raises(CheckpointError, match=name):
            read_state(folder)
    finally:
        (folder / name).write_bytes(content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | TEXT
    | st.sampled_from(["lora", "full", "LORA", "IA3", "VERA", "q_proj"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OURS = ["name", "about", "rank", "alpha", "dropout", "targets", "start"]
THEIRS = ["peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "use_dora", "use_rslora", "bias"]
THEIRS += ["init_lora_weights", "rank_pattern", "feedforward_modules"]


@MANY
@given(st.data(), st.booleans())
def test_any_description_of_an_adapter_is_a_method_or_refused(tmp_path, data, ours):
    theirs = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    good = {"name": "lora", "about": {}} if ours else theirs
    changes = data.draw(st.dictionaries(st.sampled_from(OURS if ours else THEIRS), JSON, max_size=3))
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / ("method.json" if ours else "adapter_config.json")).write_text(json.dumps(good | changes))
    try:
        method, about = read_method(tmp_path)
    except AdapterError as error:
        assert str(tmp_path) in str(error)
        return
    assert isinstance(method, Method)
    assert isinstance(about, dict)


@FEW
@given(st.data())
def test_spoiled_weights_of_an_adapter_are_refused_or_finite(home, tmp_path, data):
    source = home / BASE / "adapter"
    method, _ = read_method(source)
    (tmp_path / "adapter_model.safetensors").write_bytes(
        spoiled((source / "adapter_model.safetensors").read_bytes(), data)
    )
    model = load_model(home / "model")
    method.attach(model)
    try:
        load_adapter(tmp_path, model, method)
    except AdapterError as error:
        assert "adapter_model.safetensors" in str(error)
        return
    assert all(tensor.isfinite().all() for tensor in method.state(model).values())


@FEW
@given(st.data())
def test_spoiled_weights_of_a_model_are_refused_or_loaded(home, tmp_path, data):
    content = (home / "model/model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((home / "model/config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(spoiled(content, data))
    try:
        load_model(tmp_path)
    except ModelError as error:
        assert str(tmp_path) in str(error)


FIELDS = sorted((tiny().config.to_hf() | LLAMA).keys() - {"hidden_act"})  # which test_models.py tells of


@MANY
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2))
def test_any_field_of_a_config_is_understood_or_refused(changes):
    try:
        DecoderConfig.from_hf(LLAMA | changes)
    except ModelError as error:
        assert str(error)
