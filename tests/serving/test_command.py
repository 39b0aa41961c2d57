"""What the command refuses before it serves anything."""

import shutil

import pytest

from microplane.cli import serve as command
from microplane.config.serving import ServeKnobs
from microplane.errors import AdapterError, ConfigError
from microplane.serving.library import Library
from microplane.serving.metrics import Metrics
from microplane.serving.run import serve
from microplane.serving.scheduler import Scheduler
from microplane.serving.watch import AdapterFolder


def test_another_host_needs_a_token(bases):
    with pytest.raises(ConfigError, match="needs a token"):
        serve([str(bases["base"])], host="0.0.0.0", port=0)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        serve([], adapters=tmp_path / "none", port=0)


def test_nothing_to_serve(tmp_path):
    said = []
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "method.json").write_text("{")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="nothing to serve"):
        serve([], adapters=tmp_path, port=0, say=said.append)
    assert "broken is not served" in said[0]


def test_an_adapter_of_another_base(tmp_path, bases, adapters):
    with pytest.raises(AdapterError, match="trained on other files"):
        Library("float32", base=str(bases["t5"])).open(str(adapters / "lora0"))


def test_two_of_one_name(tmp_path, bases, adapters):
    library = Library("float32")
    library.publish(library.open(str(adapters / "lora0")))
    assert list(library.served) == ["base", "lora0"]
    assert library.open(str(adapters / "lora0")) == []  # it is there already
    assert library.open(str(bases["base"])) == []
    (tmp_path / "lora0").symlink_to(adapters / "lora1")
    with pytest.raises(ConfigError, match="served already"):
        library.open_adapter(tmp_path / "lora0", "lora0")


def test_runs_are_served_under_their_names(tmp_path, adapters, bases):
    shutil.copytree(adapters / "lora0", tmp_path / "home" / "adapter")
    (tmp_path / "going").mkdir()  # a run that has no adapter yet
    (tmp_path / "going" / "run.yaml").write_text("name: going\n")
    library = Library("float32")
    folder = AdapterFolder(tmp_path, library, Scheduler(ServeKnobs(), Metrics()))
    assert folder.open_all() == []
    assert list(library.served) == ["base", "home"]
    assert library.served["home"].adapter == 0
    assert library.open(str(tmp_path / "home")) == []


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'microplane\[serve\]'"):
        command.serve(["smollm2"])


def test_options_are_refused_with_what_is_possible(tmp_path):
    with pytest.raises(ConfigError, match="--dtype float16: possible are"):
        command.serve(["smollm2"], dtype="float16")
    with pytest.raises(ConfigError, match="nothing to serve"):
        command.serve()
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        command.serve(["smollm2"], token_file=tmp_path / "token")
