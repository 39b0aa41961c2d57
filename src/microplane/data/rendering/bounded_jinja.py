"""Chat templates are programs of others: here they end, and take no more memory than a conversation can need."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from microplane.errors import DataError

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


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, with which some templates mark answers: the body as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(style: str) -> str:
    return datetime.now().strftime(style)


@lru_cache(maxsize=16)
def compiled(template: str, kind: type[BoundedEnvironment] = BoundedEnvironment) -> jinja2.Template:
    """With the blocks, filters and functions that the chat templates of Hugging Face models are written for.

    Raises:
        DataError: if it is broken.
    """
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    try:
        compiled = environment.from_string(template)
        compiled.globals = dict(compiled.globals)  # a chain of dictionaries, which each rendering would walk through
        return compiled
    except jinja2.TemplateError as error:
        raise DataError(f"the model's chat template is broken: {error}; possible: --set data.template=plain") from None
