"""The models that are served: bases, and what was trained on them, opened so that each base is in memory once.

An adapter that is nothing but low-rank pairs is put beside the others on one set of modules, and its rows are computed
in the same batch as theirs. Another adapter gets modules of its own over the same weights of the base (a batch of its
own, which takes turns), and only what changes weights of the base gets a copy of it.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from microplane.checkpoints.adapter import read_method, read_state
from microplane.checkpoints.attach_saved import adapter_folder, attach_saved_adapter, base_of
from microplane.checkpoints.peft_files import is_of_method
from microplane.data.tokenizers.load import load_tokenizer
from microplane.device import choose
from microplane.errors import ConfigError
from microplane.inference.pipeline import Pipeline, asked_as_trained, check_weights, load, opened_as
from microplane.methods import Method
from microplane.methods.base_format import number_format
from microplane.models.contract import Model
from microplane.models.external.encoder import TransformersEncoder
from microplane.models.external.transformers import TransformersModel
from microplane.models.files.hub import resolve
from microplane.models.files.load import load_model, open_checkpoint
from microplane.models.files.opened import share
from microplane.nn.number_format import NumberFormat
from microplane.nn.quantised import QUANTISED
from microplane.serving.batch import Engine
from microplane.serving.routing import add_pairs, low_rank_pairs, make_routed, remove_pairs

NAME = re.compile(r"[^\s\x00-\x1f]{1,200}")

P = ParamSpec("P")
R = TypeVar("R")


def on_passing_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function's work done on a thread that ends with it, while the caller waits.

    Each thread that computes with torch gets workers of its own, and keeps them while it lives. Where these are more
    than there are processors, GNU's OpenMP lets workers sleep between two products, and a step of many small ones takes
    twice as long. So nothing but the scheduler's thread computes here for longer than it takes to open a model.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        done = Future[R]()

        def work() -> None:
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        thread = threading.Thread(target=work, name="microplane-open", daemon=True)
        thread.start()
        thread.join()
        return done.result()

    return call


@dataclass
class Served:
    """What a request may name as its `model`."""

    name: str
    pipeline: Pipeline
    engine: Engine
    adapter: int | None = None  # its number among the pairs of the engine; None: the modules as they are
    folder: Path | None = None  # of what was trained
    parent: str | None = None  # the name of its base
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> Model:
        return self.pipeline.model

    @property
    def writes(self) -> bool:
        return not self.pipeline.objective.needs_head and self.model.KIND != "encoder"

    @property
    def labels(self) -> bool:
        return self.model.task_head is not None

    @property
    def way(self) -> str:
        """How its rows are computed."""
        if self.adapter is not None:
            return "in one batch with its base"
        return "base" if self.parent is None else "in turns, on modules of its own"


class Base(NamedTuple):
    """A base that was read once. Nothing is ever attached to `bare`."""

    name: str
    path: Path
    bare: Model
    engine: Engine


class Library:
    """What is served, by name. Opening may take long and is done by one thread at a time, any; what is served changes
    by `publish` and `take_out` only.

    Args:
        dtype: as the knob `model.dtype`; auto opens each adapter's base as it was when the adapter was trained.
        device: as the knob `model.device`.
        base: where the base of all adapters is now, if not where they say.
        source_language: as the knob `data.source_language`, of bases; what was trained knows its own.
        target_language: as the knob `data.target_language`, the same.
    """

    def __init__(
        self,
        dtype: str = "auto",
        device: str = "auto",
        base: str | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
    ):
        self.dtype, self.device, self.base = dtype, device, base
        self.languages = source_language, target_language
        self.served: dict[str, Served] = {}
        self._bases: dict[tuple[Path, NumberFormat], Base] = {}
        self._numbers = itertools.count()
        self._opening = threading.Lock()

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self.served.values()))

    @on_passing_thread
    def open(self, name: str) -> list[Served]:
        """A base model, or a run or an adapter and its base; what is not served yet of it.

        Raises:
            MicroplaneError: for what cannot be opened, or whose name is taken.
        """
        folder = adapter_folder(Path(name).expanduser())
        if folder is not None:
            return self.open_adapter(folder)
        with self._opening:
            path = resolve(name)
            known = next((one for one in self._bases.values() if one.path.resolve() == path.resolve()), None)
            if known is not None and self.dtype == "auto":  # as an adapter on it was trained
                return [] if known.name in self.served else [self._served_base(known)]
            stored = open_checkpoint(path).stored
            dtype = stored if self.dtype == "auto" and stored in QUANTISED else self.dtype
            base = self._base(path, number_format(dtype, device=choose(self.device)), short(name))
            return [] if self.served.get(base.name) else [self._served_base(base)]

    @on_passing_thread
    def open_adapter(self, folder: Path, name: str | None = None) -> list[Served]:
        """What was trained, under its folder's name or another; before it its base, if that is not served yet.

        Args:
            folder: of a run or of an adapter.
        """
        with self._opening:
            folder = adapter_folder(folder) or folder
            run = folder.parent if folder.name == "adapter" else folder
            name = name or run.resolve().name
            if not NAME.fullmatch(name):
                raise ConfigError(f"the name {name!r}: 1 to 200 characters without spaces are possible")
            known = self.served.get(name)
            if known is not None and known.folder is not None and known.folder.resolve() == folder.resolve():
                return []
            if known is not None:
                raise ConfigError(f"a model called {name!r} is served already: unload that one, or give another name")
            method, about = read_method(folder)
            if method.whole_model or not _shares(method, about, folder):
                return [self._alone(folder, name)]
            path = base_of(folder, about, self.base)
            form = opened_as(method, about, self.dtype, choose(self.device))
            base = self._base(path, form, short(str(about.get("base") or path)))
            if base.bare.task_head is not None:  # whose weights an adapter may bring along
                return [self._alone(folder, name)]
            first = [] if base.name in self.served else [self._served_base(base)]
            return [*first, self._on(base, folder, name, method, about)]

    def publish(self, opened: list[Served]) -> None:
        for one in opened:
            self.served[one.name] = one

    def take_out(self, name: str) -> Served:
        """No request can name it any more.

        Raises:
            ConfigError: if there is no such one, or others need it.
        """
        one = self.served.get(name)
        if one is None:
            raise ConfigError(f"no model called {name!r} is served: {', '.join(self.served)}")
        if one.folder is None:
            raise ConfigError(f"{name!r} is a base and stays as long as the server runs")
        return self.served.pop(name)

    @staticmethod
    def free(one: Served) -> None:
        """Free an adapter's pairs; call it where nothing computes with them."""
        if one.adapter is not None:
            remove_pairs(one.model, one.adapter)

    def _base(self, path: Path, form: NumberFormat, name: str) -> Base:
        found = self._bases.get((path.resolve(), form))
        if found is None:
            bare = load_model(path, form)
            check_weights(bare, path)
            bare.requires_grad_(False).eval()
            model, router = share(bare), None
            if not isinstance(bare, TransformersModel | TransformersEncoder):
                router = make_routed(model)
            taken = {base.name for base in self._bases.values()} | set(self.served)
            if name in taken:  # the same base in another number format
                name = f"{name}-{form.name}"
            found = self._bases[path.resolve(), form] = Base(name, path, bare, Engine(model.eval(), router))
        return found

    def _served_base(self, base: Base) -> Served:
        tokenizer = load_tokenizer(base.path).with_unicode("auto")
        pipeline = Pipeline(base.engine.model, tokenizer, base.path).between(*self.languages)
        return Served(base.name, pipeline, base.engine)

    def _on(self, base: Base, folder: Path, name: str, method: Method, about: dict[str, Any]) -> Served:
        """An adapter that leaves the base's weights as they are."""
        twin = share(base.bare)
        attach_saved_adapter(twin, method, folder, about)
        check_weights(twin, folder)
        pairs = low_rank_pairs(twin) if base.engine.router is not None else None
        if pairs is None or about.get("target_language"):  # rows of one model are written in one language
            pipeline = asked_as_trained(twin.eval(), base.path, folder, method, about)
            return Served(name, pipeline, Engine(twin), None, folder, base.name)
        number = next(self._numbers)
        add_pairs(base.engine.model, number, pairs)
        pipeline = asked_as_trained(base.engine.model, base.path, folder, method, about)
        return Served(name, pipeline, base.engine, number, folder, base.name)

    def _alone(self, folder: Path, name: str) -> Served:
        """What changed weights of the base, with a copy of it."""
        pipeline = load(folder, self.dtype, base=self.base, device=self.device)
        pipeline.model.requires_grad_(False).eval()
        parent = (pipeline.about or {}).get("base")
        return Served(name, pipeline, Engine(pipeline.model), None, folder, short(str(parent or pipeline.path)))


def short(name: str) -> str:
    """What a model is called: a short name as it is, of a path its last part."""
    return Path(name).name.removesuffix(".gguf") if Path(name).expanduser().exists() else name


def _shares(method: Method, about: dict[str, Any], folder: Path) -> bool:
    """Whether it can stand on the base's own weights: neither it nor what its file holds beside it changes any."""
    if method.trains != "adapter":
        return False
    return about.get("peft") is None or all(map(is_of_method, read_state(folder, method)))
