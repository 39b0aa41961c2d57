"""How small files are read, and what is told of those that cannot be."""

from __future__ import annotations

import pytest

from microplane.errors import AdapterError, ModelError
from microplane.files import read_object


def test_only_a_file_that_is_not_there_has_a_stand_in(tmp_path):
    (tmp_path / "file").write_text("[]")
    assert read_object(tmp_path / "none.json", ModelError, absent={}) == {}
    with pytest.raises(AdapterError, match="cannot read .*none.json: No such file"):
        read_object(tmp_path / "none.json", AdapterError)
    with pytest.raises(ModelError, match="cannot read .*below.json: Not a directory"):
        read_object(tmp_path / "file" / "below.json", ModelError, absent={})
    with pytest.raises(ModelError, match="must hold a JSON object, but holds a list"):
        read_object(tmp_path / "file", ModelError, absent={})


@pytest.mark.parametrize("content", [b"\xff\x00", b'{"a": ', b"[" * 100_000])
def test_what_is_no_json_is_told_as_such(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ModelError, match="x.json is not valid JSON"):
        read_object(tmp_path / "x.json", ModelError)
