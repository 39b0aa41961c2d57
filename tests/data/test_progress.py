"""Rows that are counted while they are read, as a watcher sees them."""

from __future__ import annotations

from microplane.data.progress import Calling, Silent, counting, expect


class Bars(Silent):
    def __init__(self):
        self.begun, self.seen = [], []

    def progress(self, what):
        self.begun.append(what)
        return lambda done, total: self.seen.append((what, done, total))


def test_each_thing_that_is_done_has_a_bar_of_its_own_also_when_it_is_done_again():
    bars = Bars()
    count = counting(bars)
    for what, done, total in [("a", 1, 2), ("a", 2, 2), ("a", 1, 2), ("b", 5, None), ("b", 6, None), ("a", 2, 2)]:
        count(what, done, total)
    assert bars.begun == ["a", "a", "b", "a"]
    assert bars.seen[3] == ("b", 5, 0), "nobody knows of how many"


def test_a_watcher_with_a_function_beside_it_is_told_everything():
    told, bars = [], Bars()
    for name in ("record", "say", "expect"):
        setattr(bars, name, lambda what, name=name: told.append((name, what)))
    both = Calling(bars, lambda record: told.append(("function", record)))
    both.record({"step": 1})
    both.say("a line")
    expect(both, 3.0)
    both.progress("x")(1, 2)
    expect(Silent(), 1.0)
    assert told == [("record", {"step": 1}), ("function", {"step": 1}), ("say", "a line"), ("expect", 3.0)]
    assert bars.seen == [("x", 1, 2)]
