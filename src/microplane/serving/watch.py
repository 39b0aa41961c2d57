"""Adapters that come and go while the server runs: those of a watched folder, and those that a request names in it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from microplane.checkpoints.attach_saved import adapter_folder
from microplane.errors import ConfigError, MicroplaneError
from microplane.serving.library import Library, Served
from microplane.serving.protocol import ApiError
from microplane.serving.scheduler import Scheduler

SECONDS = 2.0  # between two looks into the folder
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")  # which are written last
log = logging.getLogger(__name__)
State = tuple[int, int]  # when the weights were changed, and how long they are


class AdapterFolder:
    """The folders in one folder, each with an adapter, or a run with one, which are served under their names."""

    def __init__(self, folder: Path, library: Library, scheduler: Scheduler):
        self.folder, self.library, self.scheduler = folder, library, scheduler
        self.seen: dict[str, State] = {}  # those that were opened, or could not be
        self._changing = asyncio.Lock()
        self._freeing = set[asyncio.Task[None]]()

    def there(self) -> dict[str, State]:
        """The adapters that lie in the folder, whole."""
        found = {}
        for entry in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not entry.name.startswith(".") and (state := _state(entry)) is not None:
                found[entry.name] = state
        return found

    def open_all(self) -> list[str]:
        """Serve what lies in it before the server runs; returns what could not be opened, and why."""
        problems = []
        for name, state in self.there().items():
            self.seen[name] = state
            try:
                self.library.publish(self.library.open_adapter(self.folder / name, name))
            except MicroplaneError as error:
                problems.append(f"{self.folder / name} is not served: {error}")
        return problems

    async def watch(self) -> None:
        """Follow the folder for as long as the server runs. What cannot be opened is told once, and again once it has
        changed."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("a look into %s failed", self.folder)

    async def look(self) -> None:
        """Load what is new or has changed, and let go of what is not there any more."""
        there = await asyncio.to_thread(self.there)
        async with self._changing:
            for name in [name for name in self.seen if there.get(name) != self.seen[name]]:
                del self.seen[name]
                if name in self.library.served:
                    await self._let_go(name)
                    log.info("%s is not served any more", name)
            for name, state in there.items():
                if name not in self.seen:
                    self.seen[name] = state
                    try:
                        await self._open(self.folder / name, name)
                        log.info("%s is served", name)
                    except MicroplaneError as error:
                        log.warning("%s is not served: %s", self.folder / name, error)

    async def load(self, path: str, name: str | None) -> Served:
        """Serve an adapter that a request names: one in this folder, nothing else of the machine.

        Raises:
            ApiError: for another place.
            MicroplaneError: for what cannot be opened.
        """
        inside = self.folder.resolve()
        try:
            wanted = (inside / path).resolve()
            is_there = await asyncio.to_thread(wanted.is_dir)
        except (OSError, ValueError):  # no name of a file: too long, or with the character 0 or half a letter in it
            wanted, is_there = inside / "nothing", False
        if not wanted.is_relative_to(inside) or wanted == inside:
            raise ApiError(
                403, f"path = {path!r:.200}: only what lies in the server's --adapters folder is loaded", "path"
            )
        if not is_there:
            raise ApiError(404, f"path = {path!r:.200}: there is no such folder", "path")
        async with self._changing:
            served = await self._open(wanted, name or wanted.name)
            if wanted.parent == inside and served.name == wanted.name and (state := _state(wanted)) is not None:
                self.seen[wanted.name] = state
            return served

    async def unload(self, name: str) -> None:
        """Serve it no more. What lies in the folder comes back once it has changed.

        Raises:
            ConfigError: for a base, which stays.
        """
        async with self._changing:
            await self._let_go(name)

    async def _open(self, folder: Path, name: str) -> Served:
        if name in self.library.served:
            raise ConfigError(f"a model called {name!r} is served already: unload that one, or give another name")
        opened = await asyncio.to_thread(self.library.open_adapter, folder, name)
        self.library.publish(opened)
        return opened[-1]

    async def _let_go(self, name: str) -> None:
        served = self.library.take_out(name)
        await self._when_idle(served)

    async def _when_idle(self, served: Served) -> None:
        """Free an adapter once the answers that still need it are written."""

        def try_to_free() -> bool:
            if self.scheduler.uses(served.engine, served.adapter):
                return False
            if served.adapter is None:
                self.scheduler.forget(served.engine)
            self.library.free(served)
            return True

        async def wait() -> None:
            while not await asyncio.wrap_future(self.scheduler.call(try_to_free)):
                await asyncio.sleep(0.2)

        task = asyncio.create_task(wait())
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)


def _state(entry: Path) -> State | None:
    """None where there is no adapter, or not all of it yet."""
    try:
        folder = adapter_folder(entry) if entry.is_dir() else None
        for name in WEIGHTS if folder is not None else ():
            if (file := folder / name).is_file():  # type: ignore[operator]
                told = file.stat()
                return told.st_mtime_ns, told.st_size
    except (OSError, MicroplaneError):
        return None
    return None
