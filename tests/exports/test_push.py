"""`microplane push` against a stand-in of the Hub on this machine: what goes, to where, and what is refused."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

import microplane
from microplane.cli.app import app
from microplane.errors import AdapterError, ConfigError
from microplane.models.files.load import load_model
from tests.tiny import save_tiny_folder

ROWS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcdefgh" * 4]
SETS = {"train.steps": 3, "train.threads": 1, "model.dtype": "float32", "data.max_unknown": 1.0, "eval.rows": 2}


class Hub(BaseHTTPRequestHandler):
    """Makes repositories and takes commits, as huggingface_hub sends them; every file goes inside the commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.server.asked.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
        if "read-only" in body or "read-only" in self.path:
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.reply(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        if "/commit/main" in self.path:
            address = self.server.address + "/".join(self.path.split("/")[3:5]) + "/commit/1"  # type: ignore[attr-defined]
            return self.reply(200, {"success": True, "commitUrl": address, "commitOid": "1"})
        return self.reply(200, {"url": self.server.address + "org/name", "errors": [], "warnings": []})

    def log_message(self, *parts: Any) -> None:
        pass

    def reply(self, status: int, told: dict[str, Any]) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.address = [], f"http://127.0.0.1:{server.server_address[1]}/"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address.rstrip("/"))  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read at import
    yield server
    server.shutdown()
    server.server_close()


def committed(hub: ThreadingHTTPServer) -> dict[str, bytes]:
    """The files of the last commit."""
    body = [body for path, _, body in hub.asked if "/commit/" in path][-1]  # type: ignore[attr-defined]
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> microplane.Run:
    folder = tmp_path_factory.mktemp("push")
    save_tiny_folder(folder / "base")
    return microplane.train(folder / "base", ROWS, method="lora", set=SETS | {"runs": str(folder / "runs")})


def test_the_adapter_goes_to_a_new_private_repository_and_nothing_else_of_the_run(hub, run):
    (run.folder / "adapter" / ".hidden").write_text("mine")
    (run.folder / "adapter" / "notes[1].txt").write_text("named as a pattern")
    done = microplane.push(run.folder, "org/name")
    (path, token, body), *rest = hub.asked
    assert path == "/api/repos/create"
    assert token == "Bearer secret"
    assert json.loads(body)["visibility"] == "private", body
    assert all(token == "Bearer secret" for _, token, _ in rest)
    sent = committed(hub)
    there = {str(file.name) for file in (run.folder / "adapter").iterdir()} - {".hidden"}
    assert set(sent) == {name for name, _ in done.files} == there
    assert sent["adapter_model.safetensors"] == (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "README.md" in sent
    assert done.address == hub.address + "org/name/commit/1"
    assert any("by a folder of this machine" in notice for notice in done.notices)


def test_merged_it_is_a_model_that_opens_without_its_base(hub, run, tmp_path):
    microplane.push(run.folder, "org/name", merged=True, public=True)
    assert json.loads(hub.asked[0][2])["visibility"] == "public"
    for name, content in committed(hub).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    ours = load_model(tmp_path).state_dict()
    microplane.merge(run.folder, tmp_path / "again")
    theirs = load_model(tmp_path / "again").state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert not list(run.folder.parent.glob(".*tmp"))


def test_a_dry_run_lists_and_sends_nothing(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = CliRunner().invoke(app, ["push", str(run.folder), "org/name", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "adapter_model.safetensors" in done.output
    assert "nothing was sent" in done.output
    assert "private if it is new" in done.output
    assert not hub.asked


def test_what_the_hub_refuses_is_told_in_its_words(hub, run):
    with pytest.raises(AdapterError, match="take one with write access. It says: .*rights to create"):
        microplane.push(run.folder, "org/read-only")


def test_wrong_pushes_are_refused_before_anything_is_sent(hub, run, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("no weights")
    many = tmp_path / "many" / "model"  # a folder of folders, as where one works
    many.mkdir(parents=True)
    (many / "model.safetensors").write_bytes(b"x")
    for source, repository, named, error, told in [
        (run.folder, "name", {}, ConfigError, "give org/name"),
        (run.folder, "org/name/more", {}, ConfigError, "give org/name"),
        (tmp_path, "org/name", {}, AdapterError, "holds no weights"),
        (tmp_path / "many", "org/name", {}, AdapterError, "holds no weights"),
        (tmp_path / "nowhere", "org/name", {}, AdapterError, "there is no folder"),
        (tmp_path, "org/name", {"merged": True}, ConfigError, "--merged is for a run"),
    ]:
        with pytest.raises(error, match=told):
            microplane.push(source, repository, **named)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="unset it to push"):
        microplane.push(run.folder, "org/name")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        microplane.push(run.folder, "org/name")
    assert not hub.asked
