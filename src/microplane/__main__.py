"""The console script, and `python -m microplane`. Interrupts are looked after before all that takes long to import."""

from __future__ import annotations

from microplane.cli import interrupts


def main() -> None:
    interrupts.arm()
    try:
        from microplane.cli.app import main as run
    except BaseException:
        if interrupts.received():
            interrupts.end()
        raise
    run()


if __name__ == "__main__":
    main()
