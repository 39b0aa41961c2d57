"""The commands `microplane cache list`, `prune` and `path`: parse, call, print."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from microplane.cache.entries import Entry

SHOWN = 10  # entries of a kind, without --all

cache = typer.Typer(
    help="What is kept between runs because it is slow to make: list it, delete of it, or show where it lies.\n\n"
    "When it grows over MICROPLANE_CACHE_LIMIT (20GB; none for no limit), what was used least recently is deleted, but "
    "nothing that a run is using, and no downloaded models. Models from the Hub lie in Hugging Face's own cache.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@cache.command("list", epilog="Example:  microplane cache list --all")
def list_entries(
    all_: Annotated[bool, typer.Option("--all", help=f"Every entry, not only the last {SHOWN} of each kind.")] = False,
) -> None:
    """List what there is, its size, and when it was last used."""
    from microplane.cache.entries import KINDS, entries
    from microplane.cache.eviction import VARIABLE, as_size, limit
    from microplane.files import cache_dir

    most = limit()
    found = entries()
    if not found:
        typer.echo(f"the cache in {cache_dir()} is empty")
        return
    typer.echo(_row("name", "what", "size", "last used"))
    for kind in KINDS.values():
        of_kind = [entry for entry in found if entry.kind == kind][::-1]
        shown = of_kind if all_ else of_kind[:SHOWN]
        for entry in shown:
            typer.echo(_row_of(entry))
        if rest := of_kind[len(shown) :]:
            what = f"{len(rest)} more (--all lists them)"
            typer.echo(_row(f"{kind.name}/...", what, as_size(sum(entry.bytes for entry in rest)), ""))
    counted = sum(entry.bytes for entry in found if entry.kind.automatic)
    models = sum(entry.bytes for entry in found if not entry.kind.automatic)
    allowed = f"at most {as_size(most)}" if most is not None else "any number"
    typer.echo(f"\n{as_size(counted)} of {allowed} ({VARIABLE}), and {as_size(models)} of models")
    typer.echo(f"in {cache_dir()}")


@cache.command(epilog="Example:  microplane cache prune features --older-than 30d --dry-run")
def prune(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="data, mixtures, features, native, baseline, number_format or models; or what a name in the list "
            "begins with, as models/all-MiniLM. Everything but models otherwise.",
        ),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="SIZE", help="Until this much is left, as 5GB.")] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only what was not used for so long, as 30d or 12h."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; say what would be deleted.")] = False,
) -> None:
    """Delete what was used least recently. What a run is using stays; downloaded models go only by name."""
    from microplane.cache.eviction import as_size, parse_age, parse_size
    from microplane.cache.eviction import prune as prune_entries
    from microplane.errors import ConfigError

    if name is None and to is None and older_than is None:
        raise ConfigError(
            "say what may go: a KIND, --to SIZE or --older-than AGE. microplane cache list shows what is there"
        )
    pruned = prune_entries(
        name,
        parse_size(to, "--to") if to is not None else None,
        parse_age(older_than, "--older-than") if older_than is not None else None,
        dry_run,
    )
    for entry in pruned.deleted:
        typer.echo(_row_of(entry))
    size = as_size(sum(entry.bytes for entry in pruned.deleted))
    typer.echo(f"{'would delete' if dry_run else 'deleted'} {_count(len(pruned.deleted))}, {size}")
    if pruned.in_use:
        typer.echo(f"{_count(len(pruned.in_use))} in use {'stays' if len(pruned.in_use) == 1 else 'stay'}")


@cache.command(epilog="Example:  du -sh $(microplane cache path)")
def path() -> None:
    """Print the folder of the cache; MICROPLANE_CACHE names another one."""
    from microplane.files import cache_dir

    typer.echo(cache_dir())


def _row_of(entry: Entry) -> str:
    from microplane.cache.eviction import as_size

    name = entry.name if not entry.kind.automatic else f"{entry.kind.name}/{entry.key[:10]}"
    return _row(name, entry.about, as_size(entry.bytes), _ago(time.time() - entry.used))


def _row(name: str, what: str, size: str, used: str) -> str:
    """A line of at most 80 columns."""
    return f"{name[:24]:24} {what[:31]:31} {size:>8} {used:>13}".rstrip()


def _ago(seconds: float) -> str:
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "min")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 and unit != 'min' else ''} ago"
    return "just now"


def _count(number: int) -> str:
    return f"{number} entry" if number == 1 else f"{number} entries"
