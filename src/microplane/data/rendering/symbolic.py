"""What a chat template makes of texts that it does not look at: run once on symbols in their place, true of all texts.

A `Symbol` stands for what one message says. A template may put it into its output as it is. Where it asks something of
it, as whether it holds `</think>`, the answer is the one of an ordinary text, and is written down as a `Condition`:
the result holds for the texts of which all of them are true. Anything else that is done to a symbol ends the attempt
(symbolic execution, King 1976, along one path). So no template is understood wrongly; some are not understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from microplane.data.rendering.bounded_jinja import BoundedEnvironment, compiled

Piece = str | int  # of an output: literal text, or the number of the message whose text stands there
Question = Literal["holds", "begins", "ends", "equals", "left", "right"]


class Condition(NamedTuple):
    """What is not so for the texts that a result holds for: they do not hold, begin with, end with, or equal a value,
    nor have its characters (None: white space) at their left or right end."""

    message: int
    question: Question
    value: str | None

    def met(self, text: str) -> bool:
        return _TESTS[self.question](text, self.value)


_TESTS: Mapping[Question, Callable[[str, Any], bool]] = {
    "holds": lambda text, value: value not in text,
    "begins": lambda text, value: not text.startswith(value),
    "ends": lambda text, value: not text.endswith(value),
    "equals": lambda text, value: bool(text != value),
    "left": lambda text, value: text.lstrip(value) == text,
    "right": lambda text, value: text.rstrip(value) == text,
}


class Rendered(NamedTuple):
    """The pieces of an output, no two literals side by side, and for which texts they are all of it."""

    pieces: tuple[Piece, ...]
    conditions: frozenset[Condition]


class LookedAtError(Exception):
    """A template does something with a text that depends on what stands in it."""


class _Path:
    """One run: what was asked of its symbols, and whether that was too much. A template's filters may swallow an error,
    so that it is noted here too."""

    def __init__(self) -> None:
        self.conditions: set[Condition] = set()
        self.failed = False

    def fail(self) -> NoReturn:
        self.failed = True
        raise LookedAtError


def _looked_at(self: Symbol, *_: Any, **__: Any) -> NoReturn:
    self._path.fail()


class Symbol:
    """A text made of literals and of texts that are not known; the latter are neither empty nor blank. It is no `str`,
    so that nothing reads it unseen."""

    def __init__(self, path: _Path, pieces: Iterable[Piece]):
        self._path, self._pieces = path, merged(pieces)

    def _with(self, pieces: Iterable[Piece]) -> Symbol:
        return Symbol(self._path, pieces)

    def _no(self, piece: Piece, question: Question, value: str | None) -> bool:
        """That the answer is no, from now on."""
        if isinstance(piece, str):
            return not Condition(0, question, value).met(piece)
        self._path.conditions.add(Condition(piece, question, value))
        return False

    def __add__(self, other: Any) -> Any:
        own = _pieces_of(other)
        return NotImplemented if own is None else self._with((*self._pieces, *own))

    def __radd__(self, other: Any) -> Any:
        own = _pieces_of(other)
        return NotImplemented if own is None else self._with((*own, *self._pieces))

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> NoReturn:
        """Of what a text has and a symbol has not."""
        if hasattr(str, name):
            self._path.fail()
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Symbol) and self._pieces == other._pieces:
            return True
        if not isinstance(other, str):
            return self._path.fail() if isinstance(other, Symbol) else False
        return self._no(self._only(), "equals", other)

    def __contains__(self, other: Any) -> bool:
        return self._no(self._only(), "holds", self._literal(other))

    def startswith(self, start: Any) -> bool:
        return self._at_end(0, "begins", start)

    def endswith(self, end: Any) -> bool:
        return self._at_end(-1, "ends", end)

    def strip(self, characters: str | None = None) -> Symbol:
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> Symbol:
        first, *rest = self._pieces
        if isinstance(first, str) and not (left := first.lstrip(self._literal(characters, "none"))):
            return self._with(rest).lstrip(characters)
        if isinstance(first, str):
            return self._with((left, *rest))
        self._no(first, "left", characters)
        return self

    def rstrip(self, characters: str | None = None) -> Symbol:
        *rest, last = self._pieces
        if isinstance(last, str) and not (left := last.rstrip(self._literal(characters, "none"))):
            return self._with(rest).rstrip(characters)
        if isinstance(last, str):
            return self._with((*rest, left))
        self._no(last, "right", characters)
        return self

    def _only(self) -> int:
        """The unknown text that this is; of a longer one too much would have to be known."""
        (piece, *more) = self._pieces
        return self._path.fail() if more or isinstance(piece, str) else piece

    def _literal(self, value: Any, also: str = "") -> Any:
        return value if isinstance(value, str) or (also and value is None) else self._path.fail()

    def _at_end(self, place: int, question: Question, value: Any) -> bool:
        piece = self._pieces[place]
        if isinstance(piece, str) and len(piece) < len(self._literal(value)):
            self._path.fail()
        return self._no(piece, question, self._literal(value))

    __str__ = __repr__ = __hash__ = __len__ = __iter__ = __reversed__ = __getitem__ = __format__ = _looked_at
    __int__ = __float__ = __complex__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __mul__ = _looked_at


def _pieces_of(value: Any) -> Sequence[Piece] | None:
    if isinstance(value, Symbol):
        return value._pieces
    return (str(value),) if isinstance(value, str) else None


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Without empty literals, and with those that stand side by side as one."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        elif piece != "":
            found.append(piece)
    return tuple(found)


class _Output(str):
    """A symbol on its way through `str(...)`, which the code of a template has around all that it writes."""

    symbol: Symbol

    def __str__(self) -> str:
        return self


class _SymbolicEnvironment(BoundedEnvironment):
    """Templates that write symbols. What they write is joined to a symbol again, also in macros and blocks."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.filters |= {"trim": _trim, "string": lambda value: value if isinstance(value, Symbol) else str(value)}
        tests: dict[str, Any] = self.tests
        tests |= {name: _of_text(tests[name]) for name in ("string", "iterable", "sequence")}
        self.filters.pop("random")  # what is not the same each time
        self.globals.pop("lipsum")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for output in tree.find_all(nodes.Output):
            output.nodes = [
                node if isinstance(node, nodes.TemplateData) else _call("written", [node]) for node in output.nodes
            ]
        joined: nodes.Template = _Joined().visit(tree)
        return joined

    def written(self, value: Any) -> Any:
        if not isinstance(value, Symbol):
            return value
        output = _Output()
        output.symbol = value
        return output

    def joined(self, *values: Any) -> Any:
        """Of the operator `~`."""
        return _concat(value if isinstance(value, Symbol) else str(value) for value in values)

    @staticmethod
    def concat(parts: Iterable[Any]) -> Any:
        return _concat(parts)


class _Joined(NodeTransformer):
    """What `~` joins becomes a call, for its own code makes texts of all."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - as Jinja looks for it
        self.generic_visit(node)
        return _call("joined", node.nodes)


def _call(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


def _concat(parts: Iterable[Any]) -> Any:
    found: list[Any] = [part.symbol if isinstance(part, _Output) else part for part in parts]
    symbol = next((part for part in found if isinstance(part, Symbol)), None)
    if symbol is None:
        return "".join(found)
    return symbol._with(piece for part in found for piece in _pieces_of(part) or ())


def _trim(value: Any, chars: str | None = None) -> Any:
    return value.strip(chars) if isinstance(value, Symbol) else str(value).strip(chars)


def _of_text(test: Callable[..., bool]) -> Callable[..., bool]:
    """A test that every text passes, for symbols too."""
    return lambda value, *more: test("text" if isinstance(value, Symbol) else value, *more)


def render(
    template: str, variables: Mapping[str, Any], roles: Sequence[str], generation_prompt: bool = False
) -> Rendered | None:
    """What a chat template makes of messages of these roles, whatever they say; None where that depends on more than
    can be told, or where it refuses them.

    Args:
        template: its Jinja source.
        variables: as of `ChatTemplate`.
    """
    path = _Path()
    messages = [{"role": role, "content": Symbol(path, (number,))} for number, role in enumerate(roles)]
    known = {"strftime_now": _unknown_day, **variables}  # the day of today is not that of tomorrow
    values = {"messages": messages, "tools": None, "documents": None, **known}
    try:
        output = compiled(template, _SymbolicEnvironment).render(add_generation_prompt=generation_prompt, **values)
    except Exception:  # whatever the program of others raises; the plain way tells it
        return None
    pieces = _pieces_of(output)
    return None if path.failed or pieces is None else Rendered(merged(pieces), frozenset(path.conditions))


def _unknown_day(style: str) -> NoReturn:
    raise LookedAtError
