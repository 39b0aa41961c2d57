"""How the models that are served are opened."""

import threading

import pytest

from microplane.errors import ConfigError, ModelError
from microplane.serving import library
from microplane.serving.library import Library
from tests.serving.kit import adapter, decoder_folder


def test_models_are_opened_on_threads_that_end(tmp_path, monkeypatch):
    """A thread that has multiplied keeps its workers while it lives, and beside them each wait of the thread that
    answers is a sleep: steps of eight adapters took twice as long."""
    base, opening = decoder_folder(tmp_path / "base"), list[threading.Thread]()
    folder = adapter(base, tmp_path / "first")
    for name in ("load_model", "attach_saved_adapter"):
        original = getattr(library, name)

        def noted(*args, original=original, **kwargs):
            opening.append(threading.current_thread())
            return original(*args, **kwargs)

        monkeypatch.setattr(library, name, noted)
    served = Library("float32")
    served.publish(served.open(str(base)))
    served.publish(served.open_adapter(folder))
    served.publish(served.open_adapter(folder, "again"))
    assert list(served.served) == ["base", "first", "again"]
    assert len(opening) == 3
    assert not any(thread.is_alive() for thread in opening)


def test_what_cannot_be_opened_is_told_to_whoever_asked(tmp_path):
    with pytest.raises(ModelError, match="no model"):
        Library("float32").open(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="1 to 200 characters"):
        Library("float32").open_adapter(adapter(decoder_folder(tmp_path / "base"), tmp_path / "a"), "two words")
