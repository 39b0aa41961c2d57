"""A package that is installed, and whose import fails: for want of a part, or with a library of the system."""

from __future__ import annotations

import json

import pytest

from microplane.errors import AdapterError
from microplane.exports.engines import lacking, usable
from microplane.exports.export import export
from tests.exports.kit import folder_of
from tests.labels import encoder_folder
from tests.serving.kit import pair_folder

FAILURES = {
    "a part is missing": ("import a_part_that_is_missing", "ModuleNotFoundError: No module named 'a_part_that_is"),
    "a library does not open": (
        "raise OSError('libgomp.so.1: no file\\nmore')",
        "OSError: libgomp.so.1: no file)",
    ),
    "two versions": ("raise RuntimeError('built for another numpy')", "RuntimeError: built for another numpy)"),
}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Install a package whose import fails."""

    def install(name: str, code: str) -> None:
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code)
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path / "site")

    return install


@pytest.mark.parametrize("failure", FAILURES)
def test_a_package_that_cannot_be_imported_is_told_with_its_reason(broken, failure):
    code, told = FAILURES[failure]
    broken("an_engine", code)
    assert not usable("an_engine")
    assert told in lacking("json", "an_engine", "nothing_of_the_kind")
    assert lacking("json", "an_engine", "nothing_of_the_kind").endswith(") and nothing_of_the_kind")
    assert lacking("json") == ""
    assert usable("json")


@pytest.mark.parametrize(
    ("form", "package", "base"), [("onnx", "onnx", encoder_folder), ("ctranslate2", "ctranslate2", pair_folder)]
)
def test_what_writes_a_format_is_told_before_anything_is_written(form, package, base, broken, tmp_path):
    broken(package, FAILURES["a part is missing"][0])
    with pytest.raises(AdapterError, match=rf"needs {package} \(it is installed, but .* No module named 'a_part"):
        export(base(tmp_path / "base"), tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "package", "base"),
    [("gguf", "llama_cpp", folder_of), ("sentence-transformers", "sentence_transformers", encoder_folder)],
)
def test_an_engine_that_cannot_be_asked_is_no_reason_not_to_write(form, package, base, broken, tmp_path):
    broken(package, FAILURES["a library does not open"][0])
    done = export(base(tmp_path / "base"), tmp_path / "out", form)
    (line,) = [line for line in done.lines if line.startswith("not checked")]
    assert line.endswith("it is installed, but cannot be imported (OSError: libgomp.so.1: no file)")
    (record,) = (tmp_path / "out").rglob("*export.json")
    assert json.loads(record.read_text())["engine"].startswith("not checked: it is installed")
