"""Chat templates are programs of others: here they end, and take no more memory than a conversation can need."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_TURNS = 1_000_000  # of all loops of one rendering; the longest conversations need some thousands
MOST_CHARACTERS = 10_000_000  # of a text, or items of a list, that is made by multiplying
MOST_POWER = 64
PLACES = frozenset(("first", "last", "index", "index0", "revindex", "revindex0", "length", "depth"))  # in a loop


class _CountedContext(Context):
    """One rendering, whose loops are counted anew."""

    def __init__(self, environment: Any, *arguments: Any, **named: Any):
        super().__init__(environment, *arguments, **named)
        environment.turns.made = 0


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which the turns of all loops of a rendering are counted, and products and powers stay small."""

    context_class = _CountedContext
    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.turns = threading.local()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [loop.iter], [], None, None)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute, if it is safe. The place in a loop, which is asked for in each turn, is a number or a truth and
        always is."""
        if type(obj) is LoopContext and attribute in PLACES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop.

        Raises:
            SecurityError: for more than `MOST_TURNS` in one rendering.
        """
        for item in items:
            self.turns.made += 1
            if self.turns.made > MOST_TURNS:
                raise SecurityError(f"it loops more than {MOST_TURNS:,} times")
            yield item

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Raises: SecurityError, for a text or a number beyond all measure."""
        if operator == "**" and isinstance(right, int) and abs(right) > MOST_POWER:
            raise SecurityError(f"it asks for the power {right}")
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > MOST_CHARACTERS:
                raise SecurityError(f"it repeats a text or a list {times} times")
        return super().call_binop(context, operator, left, right)
