"""What the library transformers has: which of its classes a config.json means, that class built and its files read.

Code from a model's repository is never run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from microplane.errors import ModelError

Kind = Literal["decoder", "encoder-decoder", "encoder"]
SEES_BOTH_WAYS = ("xlnet",)  # its class that writes text orders its tokens by chance: its states know what comes later
SUFFIXES = ("ForMaskedLM", "ForPreTraining", "ForQuestionAnswering", "ForMultipleChoice", "LMHeadModel", "ForCausalLM")
CONTEXTS = ("max_position_embeddings", "seq_length", "max_seq_len", "max_target_positions")
POOLER = "pooler"  # makes one vector of a row: of an encoder without a head, what nothing here reads
UNBOUNDED = 1 << 20  # tokens: for models whose config.json names no context


def find_transformers_class(fields: Mapping[str, Any]) -> tuple[str, Kind]:
    """(class of transformers, kind) of a config.json. An encoder's class is that of the model without a head, or one
    that labels sentences or tokens.

    Raises:
        ModelError: if transformers is not installed, or has no model of that name.
    """
    named = fields.get("architectures")
    what = named[0] if isinstance(named, list) and named else fields.get("model_type") or "(config.json names none)"
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(
            f"the architecture {what} has no implementation here; transformers may have one, and is not installed: "
            "pip install 'microplane[transformers]'"
        )
    from transformers.models.auto import modeling_auto as auto

    model_type = str(fields.get("model_type"))
    if _is_encoder(fields):
        plain = _names(auto.MODEL_MAPPING_NAMES, model_type)[0]
        if what in (label_class(model_type, tokens) for tokens in (False, True)):
            return what, "encoder"
        stem = plain.removesuffix("Model")
        if what == model_type or what in (plain, *(stem + suffix for suffix in SUFFIXES), "XLMWithLMHeadModel"):
            return plain, "encoder"
    if what in _names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, model_type):
        return what, "decoder"
    if what in _names(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, model_type):
        return what, "encoder-decoder"
    version = importlib.metadata.version("transformers")
    foreign_code = " Code from the model's own repository is never run." if fields.get("auto_map") else ""
    raise ModelError(
        f"the architecture {what} is not supported: it has no implementation here, and transformers {version} has none "
        f"of that name that writes text, or that is an encoder of texts.{foreign_code}"
    )


def _is_encoder(fields: Mapping[str, Any]) -> bool:
    """Whether it is of a family of encoders, and is not set to write."""
    from transformers.models.auto import modeling_auto as auto

    kind = str(fields.get("model_type"))
    if kind not in auto.MODEL_MAPPING_NAMES or kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return False
    if kind in SEES_BOTH_WAYS:
        return True
    labels = kind in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    family = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or (
        labels and kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return family and not fields.get("is_decoder") and not fields.get("causal")


def _names(table: Mapping[str, Any], model_type: str) -> tuple[str, ...]:
    found = table.get(model_type)
    return () if found is None else (found,) if isinstance(found, str) else tuple(found)


def label_class(model_type: str, tokens: bool) -> str | None:
    """The family's own class that labels sentences, or each token; None if it has none."""
    from transformers.models.auto import modeling_auto as auto

    table = (
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
        if tokens
        else auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
    return next(iter(_names(table, model_type)), None)


def families_of_transformers() -> dict[str, tuple[Kind, tuple[str, ...]]]:
    """By model_type: the kind, and the classes that are opened."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[str, tuple[Kind, tuple[str, ...]]] = {}
    for name in auto.MODEL_MAPPING_NAMES:
        if _is_encoder({"model_type": name}):
            plain = _names(auto.MODEL_MAPPING_NAMES, name)[0]
            labelling = (label_class(name, tokens) for tokens in (False, True))
            found[name] = "encoder", (plain, *(one for one in labelling if one is not None))
    tables: tuple[tuple[Kind, Mapping[str, Any]], ...] = (
        ("decoder", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        ("encoder-decoder", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    )
    for kind, table in tables:
        for name in table:
            found.setdefault(name, (kind, _names(table, name)))
    return found


def hf_config(fields: Mapping[str, Any]) -> Any:
    """transformers' configuration of a config.json.

    Raises:
        ModelError: if it cannot be read.
    """
    from transformers import AutoConfig

    given = {name: _floats(value) for name, value in fields.items() if name not in ("model_type", "auto_map")}
    if fields.get("model_type") == "rwkv":  # it would divide its own weights in place whenever it is not training
        given["rescale_every"] = 0
    try:
        return AutoConfig.for_model(fields["model_type"], **given)
    except Exception as error:  # whatever a config class makes of a wrong field
        raise ModelError(f"transformers cannot read this config.json: {error}") from None


def _floats(value: Any) -> Any:
    """Numbers that JSON lacks, as transformers writes them: {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        odd = value.get("__float__")
        return float(odd) if isinstance(odd, str) else {name: _floats(part) for name, part in value.items()}
    return [_floats(part) for part in value] if isinstance(value, list) else value


def sizes_of(config: Any) -> tuple[int, int, int, int]:
    """(vocabulary, width, layers, context) of a configuration.

    Raises:
        ModelError: if it does not say them.
    """
    try:
        vocab, width, layers = (int(getattr(config, n)) for n in ("vocab_size", "hidden_size", "num_hidden_layers"))
    except (AttributeError, TypeError) as error:
        raise ModelError(f"config.json does not say what a model that reads text needs: {error}") from None
    told = (getattr(config, name, None) for name in CONTEXTS)
    return vocab, width, layers, next((size for size in told if isinstance(size, int) and size > 0), UNBOUNDED)


def class_named(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def new_net(architecture: str, fields: Mapping[str, Any]) -> Any:
    """A model of transformers with new weights.

    Raises:
        ModelError: if config.json describes none.
    """
    try:
        return class_named(architecture)(hf_config(fields))
    except (TypeError, ValueError, AttributeError, RuntimeError, AssertionError, ImportError, ZeroDivisionError) as e:
        raise ModelError(f"transformers cannot build {architecture} from this config.json: {e}") from None


def read_net(
    architecture: str, fields: Mapping[str, Any], folder: Path, dtype: torch.dtype, plain: bool = False
) -> Any:
    """A model of transformers with the weights of a folder.

    Args:
        plain: it is a model without a head: the folder may lack its pooler, and have heads beside it.

    Raises:
        ModelError: if the weights are not all there, or some are of no use.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what the folder lacks is new, and the same each time
            net, info = class_named(architecture).from_pretrained(
                folder,
                config=hf_config(fields),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise ModelError(f"transformers cannot load {folder}: {error}") from None
    if plain:
        parts = [name for name, _ in net.named_children()]
        own = tuple(f"{prefix}{part}." for part in parts for prefix in ("", f"{net.base_model_prefix}."))
        info["missing_keys"] = [name for name in info["missing_keys"] if not name.startswith(f"{POOLER}.")]
        info["unexpected_keys"] = [
            name for name in info["unexpected_keys"] if name.startswith(own) and f"{POOLER}." not in name
        ]
    _check(architecture, folder, info)
    return net


def _check(architecture: str, folder: Path, info: Mapping[str, Any]) -> None:
    """Raises: ModelError, for tensors that are missing, of no use, or of another shape."""
    wrong = {"missing": "missing_keys", "unexpected": "unexpected_keys", "wrong": "mismatched_keys"}
    found = {what: sorted(map(str, info[keys])) for what, keys in wrong.items()}
    lines = [f"  {len(names)} {what}: {', '.join(names[:8])}" for what, names in found.items() if names]
    if lines:
        raise ModelError(
            f"the weights in {folder} do not fit the {architecture} that its config describes:\n" + "\n".join(lines)
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers tells of its own work."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def takes(net: nn.Module, argument: str) -> bool:
    """Whether the model's forward has an argument of that name."""
    return argument in inspect.signature(net.forward).parameters
