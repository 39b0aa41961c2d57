"""A new run that starts from the adapter of an earlier one: on new data, with a new optimizer and schedule."""

from __future__ import annotations

from pathlib import Path

from microplane.checkpoints.adapter import read_method
from microplane.checkpoints.attach_saved import adapter_folder, base_of
from microplane.config.knobs import ModelKnobs, RunKnobs
from microplane.errors import AdapterError, ConfigError


def continued(config: RunKnobs) -> RunKnobs:
    """The configuration with what the adapter of `model.adapter` decides filled in: base, method, template, system,
    Unicode form, segmentation, date.

    Raises:
        AdapterError: if there is none, or its base is not to be had.
        ConfigError: for a model or a method that is not the adapter's.
    """
    if config.model.adapter is None:
        return config
    place = Path(config.model.adapter).expanduser()
    folder = adapter_folder(place)
    if folder is None:
        raise AdapterError(f"model.adapter = {config.model.adapter}: there is no run and no adapter{_or_model(place)}")
    method, about = read_method(folder)
    own = {"name": method.name, **method.model_dump(mode="json")}
    default = RunKnobs.model_fields["method"].default
    other = {name: value for name, value in config.method.items() if own.get(name, value) != value or name not in own}
    if config.method != default and other:
        listed = ", ".join(f"method.{name} = {value!r}, and {own.get(name)!r} there" for name, value in other.items())
        raise ConfigError(f"a run that starts from the adapter {folder} has its method: {listed}. Leave that out")
    known = ModelKnobs.model_fields["name"].default, about.get("base")
    named = None if config.model.name in known else config.model.name  # where the base lies now
    base = folder if method.whole_model else base_of(folder, about, named, knob="MODEL, or --set model.name=FOLDER")
    if method.whole_model and named not in (None, str(base)):
        raise ConfigError(f"model.name = {named}: the weights of {folder} are a whole model. Leave it out")
    data = {
        name: about[name]
        for name in ("template", "system", "unicode", "segment", "date", "source_language", "target_language")
        if about.get(name) is not None and getattr(config.data, name) == type(config.data).model_fields[name].default
    }
    model = {
        "name": str(base.absolute()) if method.whole_model else str(named or about.get("base")),
        "adapter": None if method.whole_model else str(folder.absolute()),
        "revision": about.get("revision") if named is None else config.model.revision,
    }
    if config.model.dtype == "auto" and about.get("base_dtype") in ("float32", "bfloat16", "int8", "nf4"):
        model["dtype"] = about["base_dtype"]
    return config.model_copy(
        update={
            "method": own,
            "model": config.model.model_copy(update=model),
            "data": config.data.model_copy(update=data),
        }
    )


def _or_model(place: Path) -> str:
    """The way round for a folder that is no adapter, such as a merged one."""
    return "; a model is given as MODEL: microplane train MODEL DATA" if (place / "config.json").is_file() else ""
