"""How many kinds of bad input there are, each told apart by its name."""

from __future__ import annotations

from collections import Counter

from tests.bad_input import test_adapters, test_answers, test_configs, test_data_files, test_models, test_runs


def test_at_least_two_hundred_kinds():
    modules = (test_adapters, test_answers, test_configs, test_data_files, test_models, test_runs)
    names = Counter((module.__name__, case.name) for module in modules for case in module.CASES)
    assert names.total() >= 200
    assert [name for name, count in names.items() if count > 1] == []
