"""How files are named in a comparison's page and JSON: as they were given, or by their place in its folder (see
`report.places`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microplane.comparison.plan import Plan
from microplane.config.build import read_yaml
from microplane.report.places import home_name, renamed

AS_THEY_ARE = ("rows", "answer")  # parts of a result that hold people's texts, or no path


def general_name(plan: Plan) -> str | None:
    """The text of forgetting as it was named; of a comparison that kept no name, the file's."""
    if plan.general is None or plan.general_name is not None:
        return plan.general_name
    return Path(plan.general).name


def shown(result: Mapping[str, Any], folder: Path, plan: Plan) -> dict[str, Any]:
    """A result without paths of this machine, but for those that somebody typed.

    Args:
        folder: of the comparison, under whatever name it was called now.
    """
    names, whole = _names(folder, plan), folder.absolute().name
    told = {key: value if key in AS_THEY_ARE else renamed(value, names, whole) for key, value in result.items()}
    told["plan"] |= {"set": plan.set, "general": general_name(plan)}
    told["plan"].pop("general_name")
    return told


def _names(folder: Path, plan: Plan) -> dict[str, str]:
    """What stands for each path; nothing for the comparison's folder, within which paths begin."""
    names, begun = home_name(), Path(plan.rows.train).parent.parent
    names |= {given: given for given in (plan.data, *plan.set.values()) if isinstance(given, str) and given[:1] == "/"}
    names |= {model: plan.model for model in (_opened(folder), str(Path(plan.model).expanduser())) if model[:1] == "/"}
    if plan.general is not None and Path(plan.general).is_absolute():
        names[plan.general] = str(general_name(plan))
    if Path(plan.data).parent == begun:  # rows that lay in no file
        del names[plan.data]
    return names | {str(place): "" for place in (folder.absolute(), folder.resolve(), begun)}


def _opened(folder: Path) -> str:
    """The model as the trials open it: by its path, where it lies in files of one's own."""
    trials = folder / "trials.yaml"
    return str(read_yaml(trials)["model"]["name"]) if trials.is_file() else ""
