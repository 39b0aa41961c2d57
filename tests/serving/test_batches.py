"""Answers written in shared batches are those that each adapter gives to a single user."""

import random

import pytest

from microplane.config.knobs import GenerateKnobs
from microplane.inference.pipeline import load
from microplane.serving.batch import Batch, Generation
from microplane.serving.library import Library
from tests.serving.kit import PROMPTS, adapter, decoder_folder, pair_folder


def asked(served, prompt, most=12, told=None, **more):
    knobs = GenerateKnobs(max_new_tokens=most, **more)
    pieces = told if told is not None else []
    pipeline = served.pipeline
    return Generation(
        pipeline.prompt(prompt), pipeline.tokenizer.for_targets, knobs, pipeline.stop_ids, pieces.append, served.adapter
    )


def written(pieces):
    assert pieces[-1].error is None
    return "".join(piece.text for piece in pieces)


def drive(requests, seed=0):
    """Write the answers of (served, prompt), which come at random moments; returns texts."""
    chance, told, batches = random.Random(seed), [[] for _ in requests], {}
    waiting = [(served, asked(served, prompt, told=told[n])) for n, (served, prompt) in enumerate(requests)]
    chance.shuffle(waiting)
    while waiting or any(batch.answers for batch in batches.values()):
        coming, waiting = waiting[: (count := chance.randint(0, 5))], waiting[count:]
        by_engine = {}
        for served, one in coming:
            by_engine.setdefault(id(served.engine.model), (served.engine, []))[1].append(one)
        for number, (engine, new) in by_engine.items():
            batches.setdefault(number, Batch(engine)).join(new)
        for batch in batches.values():
            if batch.answers:
                batch.step()
    return [written(pieces) for pieces in told]


def alone(requests, most=12):
    """What `microplane generate` answers to each, asked one by one."""
    opened = {served.name: load(served.folder or served.pipeline.path, "float32") for served, _ in requests}
    return [opened[served.name].generate(prompt, max_new_tokens=most) for served, prompt in requests]


@pytest.mark.parametrize(
    ("family", "way"),
    [("decoder", "compiled"), ("decoder", "plain"), ("t5", "compiled"), ("marian", "compiled")],
    indirect=["way"],
)
def test_mixed_adapters_answer_as_each_does_alone(tmp_path, family, way):
    base = decoder_folder(tmp_path / "base") if family == "decoder" else pair_folder(tmp_path / "base", family)
    library = Library("float32")
    library.publish(library.open(str(base)))
    for number, method in enumerate(["lora", "rslora", "lora"]):
        folder = adapter(base, tmp_path / f"a{number}", method, number, rank=2 + number)
        library.publish(library.open(str(folder)))
    assert [served.adapter for served in library] == [None, 0, 1, 2]
    assert len({id(served.engine.model) for served in library}) == 1
    requests = [(served, prompt) for served in library for prompt in PROMPTS[:5]]
    answers = drive(requests)
    assert answers == alone(requests)
    assert len({tuple(answers[first : first + 5]) for first in range(0, 20, 5)}) == 4  # told apart by their adapters


def test_whatever_ends_as_a_low_rank_pair_shares_the_batch(tmp_path):
    base, library = decoder_folder(tmp_path / "base"), Library("float32")
    for method in ["lora+", "lora-fa", "nb-lora", "adalora", "vera", "paca", "scalora", "lora-auto"]:
        rank = {} if method == "lora-auto" else {"rank": 4}
        library.publish(library.open(str(adapter(base, tmp_path / method, method, **rank))))
    assert [served.adapter for served in library if served.parent] == list(range(8))
    requests = [(served, prompt) for served in library for prompt in PROMPTS[:3]]
    assert drive(requests) == alone(requests)


def test_what_is_no_pair_has_modules_of_its_own_and_leaves_the_base_alone(tmp_path):
    base, library = decoder_folder(tmp_path / "base"), Library("float32")
    library.publish(library.open(str(base)))
    for method in ["dora", "bottleneck", "prompt", "prefix", "ia3", "norms", "last-n", "full"]:
        library.publish(library.open(str(adapter(base, tmp_path / method, method))))
    assert [served.adapter for served in library] == [None] * 9
    requests = [(served, prompt) for served in library for prompt in PROMPTS[:3]]
    assert drive(requests) == alone(requests)
    bare = next(iter(library._bases.values())).bare
    held = {id(tensor) for tensor in bare.parameters()}
    weights = {served.name: [id(p) in held for p in served.model.parameters() if p.dim() > 1] for served in library}
    assert any(weights["bottleneck"]), "the matrices of the base are shared"
    assert not any(weights["full"])
