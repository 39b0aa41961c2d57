"""Registries that other packages add to: what is refused, and by which words."""

from __future__ import annotations

import sys

import pytest

from microplane.config.extensions import Registry
from microplane.errors import ConfigError
from microplane.evaluation import text_metrics
from microplane.methods import METHODS, Method, make_method


def install(folder, package, entries, code="", module="other"):
    """What pip leaves of a package: its module, and its dist-info with the entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)
    (folder / f"{module}.py").write_text(code)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other", raising=False)
    yield tmp_path
    sys.modules.pop("other", None)


def whole(name, value):
    if not isinstance(value, int):
        raise TypeError("which is no whole number")
    return value


def registry(**built_in):
    return Registry("microplane.test", built_in, whole)


GROUP = "[microplane.test]\n"


def test_without_packages_it_is_what_is_built_in():
    numbers = registry(one=1)
    assert dict(numbers) == {"one": 1}
    assert (len(numbers), "two" in numbers, numbers.package_of("one")) == (1, False, None)
    with pytest.raises(KeyError):
        numbers["two"]


def test_what_a_package_adds_comes_after_and_is_imported_when_used(site):
    install(site, "more", f"{GROUP}two = other:TWO\n", "TWO = 2")
    numbers = registry(one=1)
    assert list(numbers) == ["one", "two"]
    assert numbers["one"] == 1
    assert "other" not in sys.modules
    assert (numbers["two"], numbers.package_of("two"), len(numbers)) == (2, "more", 2)


def test_a_built_in_name_cannot_be_taken(site):
    install(site, "more", f"{GROUP}one = other:TWO\n", "TWO = 2")
    with pytest.raises(ConfigError, match=r"the package more adds 'one' to microplane.test, and Microplane itself has"):
        list(registry(one=1))


def test_two_packages_cannot_have_one_name(site):
    install(site, "more", f"{GROUP}two = other:TWO\n", "TWO = 2")
    install(site, "most", f"{GROUP}two = another:TWO\n", "TWO = 2", "another")
    with pytest.raises(ConfigError, match="the package most adds 'two' .* and the package more has that name"):
        list(registry(one=1))


def test_a_package_that_cannot_be_imported_is_named_and_hurts_nobody_else(site):
    install(site, "broken", f"{GROUP}two = other:TWO\n", "import nowhere_to_be_found")
    numbers = registry(one=1)
    assert numbers["one"] == 1
    assert "two" in numbers
    message = r"the package broken adds 'two' .* as other:TWO, which cannot be imported: ModuleNotFoundError: .*nowhere"
    with pytest.raises(ConfigError, match=f"{message}.* pip uninstall broken"):
        numbers["two"]


def test_an_entry_without_its_object_is_named(site):
    install(site, "broken", f"{GROUP}two = other:THREE\n", "TWO = 2")
    with pytest.raises(ConfigError, match="as other:THREE, which cannot be imported: AttributeError"):
        registry()["two"]


def test_an_object_of_another_kind_is_refused(site):
    install(site, "broken", f"{GROUP}two = other:TWO\n", "TWO = '2'")
    with pytest.raises(ConfigError, match="the package broken .* as other:TWO, which is no whole number. Mend the"):
        registry()["two"]


# ------------------------------------------------------------------------------------------------ methods, metrics


def methods(monkeypatch):
    """The methods as a new process would find them."""
    monkeypatch.delitem(METHODS.__dict__, "_entries", raising=False)
    monkeypatch.setattr(METHODS, "_loaded", {})
    return METHODS


@pytest.fixture(autouse=True)
def forget():
    yield
    for registry in (METHODS, text_metrics.METRICS):
        registry.__dict__.pop("_entries", None)


OWN = """
from typing import ClassVar
from pydantic import Field
from microplane.methods.full import Full

class Own(Full):
    name: ClassVar[str] = "own"
    strength: float = Field(1.0, gt=0, description="of it")
"""


def test_a_method_is_made_by_name_with_its_knobs(site, monkeypatch):
    install(site, "mine", "[microplane.methods]\nown = other:Own\n", OWN)
    methods(monkeypatch)
    method = make_method({"name": "own", "strength": 2})
    assert isinstance(method, Method)
    assert method.strength == 2.0
    with pytest.raises(ConfigError, match=r"method.strength = 0: must be greater than 0"):
        make_method({"name": "own", "strength": 0})


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("own = other:Field", "which is no subclass of microplane.methods.Method"),
        ("other = other:Own", "which calls itself 'own': the two must be the same"),
    ],
)
def test_what_is_no_method_is_refused(site, monkeypatch, entry, complaint):
    install(site, "mine", f"[microplane.methods]\n{entry}\n", OWN)
    with pytest.raises(ConfigError, match=f"the package mine adds .*{complaint}"):
        methods(monkeypatch)[entry.split(" ")[0]]


def test_a_metric_is_computed_and_listed(site, monkeypatch):
    code = "def length(predictions, targets):\n    return {'length': sum(map(len, predictions)) / len(predictions)}\n"
    install(site, "mine", "[microplane.metrics]\nlength = other:length\nnumber = other:NUMBER\n", code + "NUMBER = 1")
    text_metrics.METRICS.__dict__.pop("_entries", None)
    monkeypatch.setattr(text_metrics.METRICS, "_loaded", {})
    text_metrics.check(["length"])
    assert text_metrics.score(["length", "exact_match"], ["ab", "b"], ["a", "b"]) == {"length": 1.5, "exact_match": 0.5}
    with pytest.raises(ConfigError, match="Did you mean 'length'.* chrf, length, number"):
        text_metrics.check(["lenght"])
    with pytest.raises(ConfigError, match="the package mine adds 'number' .* which is no function of predictions"):
        text_metrics.score(["number"], ["a"], ["a"])
