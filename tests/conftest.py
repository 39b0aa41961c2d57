"""Shared by all tests: one thread (several are slower on tiny tensors, and the same bits need the same number)."""

import os
import reprlib
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    """What a script starts in the background ignores Ctrl-C, and so would all processes that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_assertrepr_compare(op, left, right):
    """Whole files that differ, told in a line: where CI is set, pytest lists all letters of them, for hours."""
    if op == "==" and len(repr(left)) + len(repr(right)) > 100_000:
        return [f"long values differ: {reprlib.repr(left)} == {reprlib.repr(right)}"]
    return None


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """What a test writes need not survive a power cut: a tenth of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_once():
    """The compiled operations are loaded before a test has an empty cache, where they would be made anew."""
    from microplane.nn.ops import native

    native.library()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """Of fast operations: both must hold, with the compiled ones and where there is no compiler."""
    from microplane.nn.ops import native

    if request.param == "plain":
        monkeypatch.setenv("MICROPLANE_NATIVE", "0")
    elif native.library() is None:
        pytest.skip("nothing can be compiled here")


@pytest.fixture
def threads_in_name(monkeypatch):
    """torch says that it has the threads that it was told to have, and computes on one. On cores that are busy two that
    wait for each other take a hundred times as long."""
    told = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: told[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: told.__setitem__(0, count))
    monkeypatch.setenv("MICROPLANE_NATIVE", "0")  # the compiled operations would wake as many


@pytest.fixture(scope="session")
def smollm2():
    """The embedded SmolLM2-135M-Instruct as a .gguf path (fetched once into the user's cache)."""
    from microplane.models.files.hub import resolve

    return resolve("smollm2")


@pytest.fixture(scope="session")
def smol(smollm2):
    """The tokenizer of SmolLM2."""
    from microplane.data.tokenizers.load import load_tokenizer

    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def t5_tokenizer():
    """The folder of T5's own tokenizer: spiece.model, tokenizer.json and its config (fetched like the model above)."""
    from microplane.models.files.hub import tokenizer_folder

    return tokenizer_folder("t5-tokenizer")


@pytest.fixture(scope="session")
def mt5_tokenizer():
    """The folder of mT5's spiece.model."""
    from microplane.models.files.hub import tokenizer_folder

    return tokenizer_folder("mt5-tokenizer")


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2 as a folder (fetched once into the user's cache)."""
    from microplane.models.files.hub import resolve

    return resolve("minilm")


@pytest.fixture(scope="session")
def make_tiny():
    """Makes byte-level tokenizers with any special tokens and any template."""
    from tests.tiny_tokenizers import tiny

    return tiny


@pytest.fixture(scope="session")
def make_spaced():
    """Makes tokenizers that put a space before every text."""
    from tests.tiny_tokenizers import spaced

    return spaced


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from tests.report.browser import running

    with running(tmp_path_factory.mktemp("profile")) as connection:
        yield connection


@pytest.fixture
def page(browser):
    """A page of a real browser, empty."""
    from tests.report.browser import new_page

    with new_page(browser) as page:
        yield page
