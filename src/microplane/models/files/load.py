"""Reading and writing models: folders in Hugging Face layout (safetensors); reading GGUF files (models/files/gguf.py).

Never a pickle. One tensor at a time is held beside the model, so that loading peaks at the size of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from microplane.errors import ModelError
from microplane.files import aside, read_object, write_json
from microplane.models.configs.fields import overlaid
from microplane.models.configs.head import OWN, head_of, plain_of
from microplane.models.contract import Model, hf_names, linears
from microplane.models.decoder import Decoder
from microplane.models.external.transformers import TransformersModel
from microplane.models.families import family_of
from microplane.models.files.bitsandbytes import NF4Shards, readable
from microplane.models.files.checkpoint import INDEX, WEIGHTS, Checkpoint, Places, listed, misfit
from microplane.models.files.sentence_transformers import note_sentences
from microplane.models.files.text_part import note_whole, text_part
from microplane.models.generation_rules import settings_of
from microplane.models.heads import in_data_units, put_head
from microplane.models.nomic_layout import named
from microplane.models.task_head import TaskHead
from microplane.nn.gguf_linear import GGUFLinear
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QUANTISED, QuantisedLinear
from microplane.nn.sharded import any_sharded, save_gathered

GENERATION = "generation_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}
# Not saved: names of code in the model's repository, which is not needed here, and settings of a head that is gone.
DROPPED = ("auto_map", OWN)


class Shards(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read from disk when asked for."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]):
        self.places = places  # name -> file, and what it is called there

    def __getitem__(self, name: str) -> Tensor:
        path, stored_name = self.places[name]
        # The file is mapped anew for each tensor: a mapping kept open would count all that was read as our memory.
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored_name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.places  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder in Hugging Face layout, or a .gguf file.

    Raises:
        ModelError: if it is neither, or is incomplete, damaged, or holds its weights as a pickle.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        from microplane.models.files.gguf import read_gguf

        return read_gguf(path)
    if path.is_file():
        raise _not_a_model_file(path)
    if not path.is_dir():
        raise ModelError(f"there is no model at {path}: give a folder with config.json and {WEIGHTS}, or a .gguf file")
    config = _read_config(path)
    places, formats = _scan(path)
    quantised = config.pop("quantization_config", None)
    config, places, around = text_part(config, places)
    if quantised:
        return Checkpoint(config, NF4Shards(Shards(places), str(path)), path, "nf4", around)
    return Checkpoint(config, named(config, Shards(places)), path, formats.most_common(1)[0][0], around)


def _not_a_model_file(path: Path) -> ModelError:
    if path.suffix.lower() in PICKLES:
        return _pickle_refused([path])
    if path.suffix == ".safetensors":
        return ModelError(f"{path} holds weights alone: give the folder that has its config.json beside it")
    return ModelError(f"{path} is not a model: give a folder with config.json and {WEIGHTS}, or a .gguf file")


def _pickle_refused(paths: list[Path]) -> ModelError:
    return ModelError(
        f"the weights in {listed([str(path) for path in paths])} are a pickle, which can run any code when opened,"
        " and are not read. Use a .safetensors version of the model, or convert it where you trust it: in transformers,"
        " AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder, safe_serialization=True)"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    adapter = folder / "adapter_config.json"
    if not file.exists() and adapter.exists():
        base = read_object(adapter, ModelError).get("base_model_name_or_path")
        raise ModelError(
            f"{folder} holds an adapter, not a model: give the model that it was trained on"
            + (f", {base}" if base else "")
            + ", or merge the two into a model first"
        )
    if not file.exists():
        raise ModelError(f"{folder} has no config.json: a model folder has config.json and {WEIGHTS}")
    config = read_object(file, ModelError)
    if (scheme := config.get("quantization_config")) and not readable(scheme):
        method = scheme.get("quant_method", "unknown") if isinstance(scheme, dict) else scheme
        raise ModelError(
            f"the weights in {folder} are quantised ({method}, by quantization_config in config.json), which is not"
            " supported, bitsandbytes' nf4 is: give the model as it was before quantisation, or as a .gguf file"
        )
    return config


def _scan(folder: Path) -> tuple[Places, Counter[str]]:
    """Which file holds each tensor, and how many numbers are stored in which format."""
    if (folder / WEIGHTS).exists():
        return _scan_files([folder / WEIGHTS])
    if (folder / INDEX).exists():
        return _scan_shards(folder)
    if pickles := sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLES):
        raise _pickle_refused(pickles)
    raise ModelError(f"{folder} has no weights: expected {WEIGHTS}, or shards and their {INDEX}")


def _scan_shards(folder: Path) -> tuple[Places, Counter[str]]:
    weight_map = read_object(folder / INDEX, ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{folder / INDEX} has no weight_map that says which file holds which tensor")
    if odd := [file for file in weight_map.values() if not isinstance(file, str)]:
        raise ModelError(f"{folder / INDEX}: weight_map says {odd[0]!r} where the name of a file should be")
    names = sorted(set(weight_map.values()))
    if astray := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{folder / INDEX} names files outside of the folder: {listed(astray)}")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder} lacks {len(absent)} of {len(names)} files of weights: {listed(absent)}")
    places, formats = _scan_files([folder / name for name in names])
    if lost := [name for name, file in weight_map.items() if places.get(name) != (folder / file, name)]:
        raise ModelError(f"{folder / INDEX} names tensors that are not in the file it says: {listed(lost)}")
    return places, formats


def _scan_files(paths: list[Path]) -> tuple[Places, Counter[str]]:
    places: Places = {}
    formats: Counter[str] = Counter()
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                stored = set(file.keys())
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    part = file.get_slice(name)
                    formats[STORED.get(part.get_dtype(), part.get_dtype())] += torch.Size(part.get_shape()).numel()
                    places[name] = path, name
                # safetensors stores shared tensors once, and notes the other names of each
                for name, kept in (file.metadata() or {}).items():
                    if kept in stored and name not in stored:
                        places.setdefault(name, (path, kept))
        except (SafetensorError, OSError) as error:
            size = f"{path.stat().st_size:,} bytes"
            raise ModelError(f"{path} ({size}) is truncated or is not safetensors: {error}. Fetch it again") from None
    if not places:
        raise ModelError(f"{', '.join(str(path) for path in paths)} holds no tensors")
    return places, formats


def load_model(path: Path, dtype: torch.dtype | NumberFormat = torch.float32) -> Model:
    """A model in eval mode whose parameters are frozen, with weights in `dtype`, or quantised as a NumberFormat says.

    Raises:
        ModelError: if it cannot be opened, is not supported, or its tensors do not fit; all misfits are listed.
    """
    return build_model(open_checkpoint(path), dtype)


def build_model(checkpoint: Checkpoint, dtype: torch.dtype | NumberFormat) -> Model:
    """As `load_model`, of files that are opened already."""
    try:
        model = build_on_meta(checkpoint)
        form = dtype if isinstance(dtype, NumberFormat) else NumberFormat(dtype)
        model.refuse_format(form.dtype)
        model.refuse_format(form.stored)
    except ModelError as error:
        raise ModelError(f"{checkpoint.path}: {error}") from None
    model.source_config, model.compute = checkpoint.config, form.multiplied
    if isinstance(model, TransformersModel):
        model.load_weights(checkpoint, form.stored)
        quantise_linears(model, form)
    else:
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        quantise_linears(model, form, _left_wide(model, checkpoint))
        model.load_state_dict(_convert(model, shapes, checkpoint, form.stored), assign=True)
        if form.quantised == GGUFLinear.kind and isinstance(model, Decoder) and model.config.tied:
            head = GGUFLinear.of_parts(checkpoint.parts(_stored_names(model, set(checkpoint.tensors))["embed.weight"]))
            model.stored_head = None if head is None else head.stored()
    note_whole(model, checkpoint)
    model.extra_weights = _extra_weights(model, checkpoint, form.stored)
    if (file := checkpoint.path / GENERATION).is_file():
        model.generation_config = read_object(file, ModelError)
    note_sentences(model, checkpoint.path)
    return _ready(model, form)


def _ready(model: Model, form: NumberFormat) -> Model:
    """In eval mode, frozen, and on its device."""
    model.eval().requires_grad_(False)
    return model if form.device == model.device else model.to(form.device)


def read_parameters(model: Model, checkpoint: Checkpoint, dtype: torch.dtype, names: set[str]) -> dict[str, Tensor]:
    """Those of `names`, parameters and buffers of `model`, that the files have, once more; what belongs to a quantised
    layer is quantised again."""
    found: dict[str, Tensor] = {}
    for ours, theirs in _stored_names(model, set(checkpoint.tensors)).items():
        site = ours.rpartition(".")[0]
        quantised = isinstance(model.get_submodule(site), QuantisedLinear)
        if ours in names or (quantised and any(name.rpartition(".")[0] == site for name in names)):
            found |= _parts(model, ours, *_read(model, checkpoint, ours, theirs), dtype)
    return {name: tensor for name, tensor in found.items() if name in names}


def open_config(path: Path) -> Checkpoint:
    """A folder's config.json as a checkpoint without tensors, for a model that is trained from new weights.

    Raises:
        ModelError: if there is none.
    """
    if not path.is_dir():
        raise ModelError(f"model.init = random: {path} is not a folder with a config.json that describes a model")
    return Checkpoint(_read_config(path), {}, path, "nothing yet")


def new_model(path: Path, seed: int, form: NumberFormat) -> Model:
    """A model as a folder's config.json describes it, with new random float32 weights, in eval mode.

    Raises:
        ModelError: if there is no config.json, or it is not supported.
    """
    fields = open_config(path).config
    model = family_of(fields).from_hf(fields).init_weights(seed)
    model.source_config, model.compute = fields, form.multiplied
    return _ready(model, form)


def quantise_linears(model: nn.Module, form: NumberFormat, left: Collection[str] = ()) -> None:
    """Replace the linears of the blocks by quantised ones, if `form` asks for it, but for those of `left`, by dotted
    name; the head is not quantised."""
    for path, site in linears(model).items():
        if not form.quantised or path in left:
            continue
        if site.layer is not None and isinstance(site.module, nn.Linear):
            plain, kind = site.module, QUANTISED.get(form.quantised, GGUFLinear)
            site.replace(kind.of(plain.weight, plain.bias, form.dtype, form.cached, form.in_8_bits))


def _left_wide(model: Model, checkpoint: Checkpoint) -> set[str]:
    """Linear layers that a 4-bit folder holds in full precision, on purpose."""
    if not isinstance(checkpoint.tensors, NF4Shards):
        return set()
    names = _stored_names(model, set(checkpoint.tensors))
    return {path for path in linears(model) if names[f"{path}.weight"] not in checkpoint.tensors.packed_names}


def build_on_meta(checkpoint: Checkpoint) -> Model:
    """A model on the meta device (shapes without memory) as the checkpoint describes it, with its task head."""
    fields = plain_of(checkpoint.config)
    kind = family_of(fields)
    with torch.device("meta"):
        model = kind.from_hf(fields)
        if checkpoint.tensors and (model.config.tied or kind.TIE_BY_WEIGHTS):
            tied = _head_is_embedding(model, checkpoint.tensors)
            model = model if tied == model.config.tied else kind(replace(model.config, tied=tied))
        if head := head_of(checkpoint.config, model.config):
            put_head(model, TaskHead(head))
    return model


def _head_is_embedding(model: Model, tensors: Mapping[str, Tensor]) -> bool:
    """True if the embedding serves as head: no other is stored, or an equal one. Some files claim tied weights and yet
    hold another head."""
    embedding, head = model.tied_names
    copies = [name for name in (embedding, *model.aliases().get(embedding, ())) if name in tensors and name != head]
    return head not in tensors or not copies or torch.equal(tensors[head], tensors[copies[0]])


def _convert(
    model: Model, shapes: Mapping[str, torch.Size], checkpoint: Checkpoint, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The model's state_dict. Weights are quantised directly from the format in which they are stored."""
    stored = set(checkpoint.tensors)  # for `in` on the tensors themselves may read one
    names = _stored_names(model, stored)
    zeros = {ours for ours, theirs in names.items() if ours in model.ZEROS and theirs not in stored}
    missing = [theirs for ours, theirs in names.items() if theirs not in stored and ours not in zeros]
    unexpected = sorted(name for name in stored - set(names.values()) if not model.is_unused_weight(name))
    misshapen: list[str] = []
    state: dict[str, Tensor] = {name: torch.zeros(shapes[name], dtype=dtype) for name in zeros}
    for ours, theirs in names.items():
        if theirs not in stored:
            continue
        tensor, packed = _read(model, checkpoint, ours, theirs)
        if tensor.shape != shapes[ours]:
            misshapen.append(f"{theirs} is {tuple(tensor.shape)}, expected {tuple(shapes[ours])}")
        elif not tensor.is_floating_point():
            misshapen.append(f"{theirs} holds {str(tensor.dtype).removeprefix('torch.')}, expected floating point")
        elif not (missing or unexpected or misshapen):
            state |= _parts(model, ours, tensor, packed, dtype)
        del tensor, packed  # before the next is read
    if missing or unexpected or misshapen:
        raise misfit(checkpoint.path, model.config.architecture, missing, unexpected, misshapen)
    return state


def _read(model: Model, checkpoint: Checkpoint, ours: str, theirs: str) -> tuple[Tensor, Any]:
    """A tensor as the model holds it, and its stored quantised form if it has one, which is (out, in) in any family."""
    quantised = isinstance(model.get_submodule(ours.rpartition(".")[0]), QuantisedLinear)
    if quantised and (packed := checkpoint.parts(theirs)) is not None:
        return checkpoint.tensors[theirs], packed
    return model.turned(ours, checkpoint.tensors[theirs]), None


def _stored_names(model: Model, stored: set[str]) -> dict[str, str]:
    """Our parameter name -> the name under which a checkpoint holds it."""
    by_name, aliases = {model.canonical_name(name): name for name in stored}, model.aliases()
    embedding, head = model.tied_names
    names = {}
    for ours, theirs in hf_names(model).items():
        others = [*aliases.get(theirs, ()), *([head] if theirs == embedding and model.config.tied else [])]
        spellings = [model.canonical_name(name) for name in (theirs, *others)]
        names[ours] = next((by_name[name] for name in spellings if name in by_name), theirs)
    return names


def _extra_weights(model: Model, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    used = {model.canonical_name(name) for name in hf_names(model).values()}
    by_name = {model.canonical_name(name): name for name in checkpoint.tensors}
    extra = {name: stored for name, stored in by_name.items() if name not in used and model.is_head_weight(name)}
    return {name: checkpoint.tensors[stored].to(dtype, copy=True) for name, stored in extra.items()}


def _parts(model: nn.Module, name: str, tensor: Tensor, packed: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of this model for a tensor of the plain one: itself, or the parts of a quantised weight.

    `packed` is the stored form that `tensor` was dequantised from, if there is one.
    """
    site, _, kind = name.rpartition(".")
    owner = model.get_submodule(site)
    if isinstance(owner, QuantisedLinear) and kind == "weight":
        parts: Any = packed if type(packed) is owner.parts_type else owner.parts_of(tensor)
        return {f"{site}.{part}": value for part, value in parts._asdict().items()}
    return {name: tensor.to(dtype, copy=True).contiguous()}


def save_model(
    model: nn.Module, folder: Path, dtype: torch.dtype | None = None, tokens: Mapping[str, Any] | None = None
) -> None:
    """Write a model (adapters merged) with its task head in Hugging Face layout, in `dtype` or as it is.

    Each file is written aside and then renamed, so that none is ever half written.

    Args:
        tokens: eos_token_id and the like, for config.json and generation_config.json; what the base says, otherwise.
    """
    assert isinstance(model, Model)
    model.refuse_format(dtype or next(model.parameters()).dtype)
    head, written = model.task_head, in_data_units(model, model.plain_tensors())
    folder.mkdir(parents=True, exist_ok=True)
    written |= model.extra_weights_to_save() if head is None or head.config.form is None else {}
    if not (gathers := any_sharded(written)):
        written = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in written.items()}
    stored = str(next(iter(written.values())).dtype).removeprefix("torch.")
    config = {name: value for name, value in (model.source_config or {}).items() if name not in DROPPED}
    config = overlaid(config, model.config.to_hf()) | {"dtype": stored, "torch_dtype": stored}
    config |= head.config.to_hf() if head else {}
    config |= tokens or {}
    write_json(folder / "config.json", config)
    if model.generation_config is not None or (tokens and model.KIND == "decoder"):
        told = settings_of(model.generation_config, model.source_config)
        write_json(folder / GENERATION, {**told, **(tokens or {})})
    with aside(folder / WEIGHTS) as temporary:
        (save_gathered if gathers else save_file)(written, temporary, {"format": "pt"})
