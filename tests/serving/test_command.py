"""What the command refuses before it serves anything."""

import pytest

from microplane.errors import ConfigError
from microplane.serving.run import serve


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
    from microplane.errors import AdapterError
    from microplane.serving.library import Library

    with pytest.raises(AdapterError, match="trained on other files"):
        Library("float32", base=str(bases["t5"])).open(str(adapters / "lora0"))


def test_two_of_one_name(tmp_path, bases, adapters):
    from microplane.serving.library import Library

    library = Library("float32")
    library.publish(library.open(str(adapters / "lora0")))
    assert list(library.served) == ["base", "lora0"]
    with pytest.raises(ConfigError, match="served already"):
        library.open(str(adapters / "lora0"))
    assert library.open(str(bases["base"])) == []  # it is there already
