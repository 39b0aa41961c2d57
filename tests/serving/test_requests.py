"""What becomes of a request on its way into a batch and back, asked of the parts themselves, without a socket."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import httpx
import pytest
import torch
from pydantic import ValidationError

from microplane.config.knobs import GenerateKnobs
from microplane.config.serving import ServeKnobs
from microplane.data.tokenizers.tokenizer import Tokenizer
from microplane.inference.pipeline import load
from microplane.inference.predict import read_to_embed, read_to_label
from microplane.serving.answers import chat_prompt, most_in_batch, most_tokens, stops_of
from microplane.serving.app import Server
from microplane.serving.batch import Batch, Generation
from microplane.serving.http import host_of
from microplane.serving.library import Library
from microplane.serving.metrics import Metrics
from microplane.serving.playground import held_out
from microplane.serving.protocol import ApiError, ChatMessage, ChatRequest, CompletionRequest
from microplane.serving.routing import Route, Router
from microplane.serving.run import _runs_first
from microplane.serving.scheduler import Scheduler
from microplane.serving.watch import AdapterFolder
from tests.serving.conftest import running
from tests.serving.kit import PROMPTS, adapter, decoder_folder, pair_folder
from tests.serving.test_batches import asked, drive, written
from tests.tiny import save_tiny_folder

SETTINGS = [
    {},
    {"repetition_penalty": 1.9},
    {"temperature": 1.3},
    {"temperature": 1.3, "top_k": 2},
    {"temperature": 1.3, "top_p": 0.3},
    {"temperature": 1.3, "min_p": 0.3},
]
OTHER_END = "{% for m in messages %}{{ m.role + ' ' + m.content + '<|endoftext|>' }}{% endfor %}"


def opened(folder, *adapters, dtype="float32", **more):
    library = Library(dtype, **more)
    for name in (folder, *adapters):
        library.publish(library.open(str(name)))
    return library


def test_requests_with_other_settings_share_a_batch_and_nothing_else(bases):
    served, told = next(iter(opened(bases["base"]))), [[] for _ in SETTINGS]
    batch = Batch(served.engine)
    batch.join([asked(served, "go on", told=told[n], **how) for n, how in enumerate(SETTINGS)])
    while batch.answers:
        batch.step()
    alone = load(bases["base"], "float32")
    wanted = [alone.generate("go on", max_new_tokens=12, **how) for how in SETTINGS]
    assert list(map(written, told)) == wanted
    assert len(set(wanted)) == len(SETTINGS)


def test_the_token_that_ends_an_answer_has_no_score(bases):
    served, pieces = next(iter(opened(bases["base"]))), []
    how = GenerateKnobs(max_new_tokens=5), (7,), pieces.append
    one = Generation([5, 6], served.pipeline.tokenizer, *how, logprobs=1)
    for token in (9, 7):
        one.take(token, torch.zeros(served.model.config.vocab_size))
    assert pieces[-1].finish == "stop"
    assert sum(len(piece.scores) for piece in pieces) == 1


def test_a_base_stands_once_in_each_number_format(tmp_path, bases):
    folders = [adapter(bases["base"], tmp_path / name, seed=n) for n, name in enumerate(("wide", "narrow"))]
    about = json.loads((folders[1] / "method.json").read_text())
    about["about"]["base_dtype"] = "bfloat16"
    (folders[1] / "method.json").write_text(json.dumps(about))
    library = opened(*folders, dtype="auto")
    formats = {one.name: next(one.model.parameters()).dtype for one in library if one.parent}
    assert formats == {"wide": torch.float32, "narrow": torch.bfloat16}


@pytest.mark.parametrize("method", ["lora", "norms"])
def test_a_base_that_moved_is_found_where_the_command_says(tmp_path, method):
    base = decoder_folder(tmp_path / "base")
    folder = adapter(base, tmp_path / "mine", method)
    wanted = load(folder, "float32").generate("go on", max_new_tokens=12)
    library = Library("float32", base=str(base.rename(tmp_path / "elsewhere")))
    library.publish(library.open(str(folder)))
    assert drive([(library.served["mine"], "go on")]) == [wanted]


def test_a_head_that_an_adapter_changes_is_its_own(tmp_path):
    """Of the states of a prompt's tokens the head gets the last of each row alone."""
    base = save_tiny_folder(tmp_path / "base", num_key_value_heads=4, tie_word_embeddings=False)
    folders = [adapter(base, tmp_path / f"a{n}", seed=n, targets=["q", "head"]) for n in range(2)]
    library, told = opened(base, *folders), [[] for _ in range(3)]
    batch = Batch(next(iter(library)).engine)
    batch.join(
        [asked(one, prompt, told=told[n]) for n, (one, prompt) in enumerate(zip(library, PROMPTS, strict=False))]
    )
    while batch.answers:
        batch.step()
    wanted = [load(at, "float32").generate(prompt, max_new_tokens=12) for at, prompt in zip((base, *folders), PROMPTS,
                                                                                           strict=False)]  # fmt: skip
    assert list(map(written, told)) == wanted


def test_what_is_embedded_goes_through_no_adapter_of_the_last_batch():
    router = Router()
    router.send([0, 1], [2, 1], torch.device("cpu"))
    with router.only(None):
        assert router.route(3) == router.route(2) == Route()
    with router.only(1):
        assert router.route(3).spans == ((1, 0, 3),)


# The queue


@pytest.fixture
def queue(bases):
    """A scheduler whose thread does not run, and the base that is asked."""

    def made(**limits):
        return Scheduler(ServeKnobs(**limits), Metrics()), next(iter(opened(bases["base"])))

    return made


def test_texts_of_each_adapter_are_computed_with_it(queue):
    scheduler, served = queue()
    one, other = (scheduler.compute(served.engine, n, "embed", ["a"], [1], lambda texts, n=n: [n]) for n in (0, 1))
    assert scheduler.uses(served.engine, 1)
    scheduler._turn()
    assert one.result() == [0]
    assert not other.done()
    assert not scheduler.uses(served.engine, 0)
    scheduler._turn()
    assert other.result() == [1]


def test_many_texts_hold_up_nobody_for_long(queue):
    scheduler, served = queue()
    seen = []

    def compute(texts):
        seen.append(list(texts))
        return texts

    many = scheduler.compute(served.engine, None, "embed", list(range(9)), [1000] * 8 + [5000], compute)
    few = scheduler.compute(served.engine, None, "embed", ["few"], [100], compute)
    other = scheduler.compute(served.engine, 0, "embed", ["other"], [100], compute)
    scheduler.write(served.engine, [asked(served, "a", 40)])
    scheduler._turn()
    assert (seen, scheduler.running) == ([[0, 1]], 1)
    while not many.done():
        scheduler._turn()
    assert many.result() == list(range(9))
    assert few.result() == ["few"]
    assert other.result() == ["other"]
    assert seen[1:3] == [["few", 2], ["other"]]  # who has waited comes first
    assert seen[-1] == [8]  # longer than what is read between two steps, and read all the same


@pytest.mark.parametrize("timeout", [600.0, 1e-9])
def test_who_went_away_takes_no_texts_of_others_along(queue, timeout):
    scheduler, served = queue(timeout=timeout)
    gone, there = (scheduler.compute(served.engine, None, "embed", [n], [1], list) for n in range(2))
    gone.cancel()
    scheduler._turn()
    assert there.done()
    assert scheduler.waiting == 0


@pytest.mark.parametrize("most", [1, 2])
def test_who_goes_away_while_it_is_computed_takes_no_texts_of_others_along(queue, most):
    scheduler, served = queue()

    def compute(texts):
        gone.cancel()
        assert len(texts) <= most  # else each by itself
        return list(texts)

    gone, there = (scheduler.compute(served.engine, None, "embed", [n], [1], compute) for n in range(2))
    scheduler._turn()
    assert there.result(0) == [1]


def test_tokens_of_a_text_are_those_that_are_read(tmp_path, bases):
    library = opened(bases["bert"], adapter(bases["bert"], tmp_path / "moods", rank=4, head=["good", "bad"]))
    plain, labelling = library.served["bert"], library.served["moods"]
    text, tokenizer = "turn on the light in the kitchen", plain.pipeline.tokenizer
    plain.model.sentence_tokens = 5
    assert [one.tokens for one in read_to_embed(plain.model, tokenizer, [text])] == [5]
    (whole,) = read_to_label(labelling.model, tokenizer, [text])
    (windows,) = read_to_label(labelling.model, tokenizer, [text], window=12)
    assert 12 < whole.tokens < windows.tokens


@pytest.mark.parametrize("about", [{}, {"long_rows": "windows", "max_length": 12}])
def test_a_text_is_cut_into_tokens_once(about, library, address, monkeypatch):
    seen, cut = [], Tokenizer._cut
    monkeypatch.setattr(Tokenizer, "_cut", lambda own, text, *more: seen.append(text) or cut(own, text, *more))
    pipeline = library.served["moods"].pipeline
    monkeypatch.setattr(pipeline, "about", {**pipeline.about, **about})
    for path, model, texts in (
        ("embeddings", "bert", ["one", "two"]),
        ("classify", "moods", ["three", "on and on " * 9]),
    ):
        done = httpx.post(f"{address}/v1/{path}", json={"model": model, "input": texts})
        assert len(done.json()["data"]) == 2
        assert seen == texts
        seen.clear()


@pytest.mark.parametrize(("lengths", "tokens", "joining"), [((9, 9, 9), 2, 2), ((90, 9), 1.9, 1), ((9, 90), 1.9, 1)])
def test_a_batch_is_as_large_as_its_rows_times_its_longest(queue, lengths, tokens, joining):
    longest = len(queue()[1].pipeline.prompt("a")) + max(lengths)
    scheduler, served = queue(batch_tokens=int(tokens * longest))
    for most in lengths:
        scheduler.write(served.engine, [asked(served, "a", most)])
    scheduler._turn()
    assert (scheduler.running, scheduler.waiting) == (joining, len(lengths) - joining)


def test_a_step_counts_a_token_of_each_answer():
    metrics = Metrics()
    metrics.stepped(3, 0.5)
    metrics.stepped(1, 0.5)
    assert (metrics.steps, metrics.tokens, metrics.seconds) == (2, 4, 1.0)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [({}, 0.0), ({"top_p": 0.5}, 1.0), ({"min_p": 0.1}, 1.0), ({"top_k": 3, "temperature": 0}, 0.0)],
)
def test_what_narrows_the_choice_is_drawn_at_1_where_nothing_is_said(given, temperature):
    assert CompletionRequest(model="base", prompt="a", **given).knobs(4, 0, 1).temperature == temperature


# How it is asked


def chat(*messages):
    return ChatRequest(model="base", messages=[{"role": role, "content": text} for role, text in messages])


def test_a_chat_begins_as_the_runs_rows_began(bases):
    served = next(iter(opened(bases["base"])))
    served.pipeline = replace(served.pipeline, prefix="Do it: ", system="Be brief.")
    assert chat_prompt(served, chat(("user", "now"))) == served.pipeline.prompt("now")
    assert "Do it: now" in served.pipeline.tokenizer.decode(chat_prompt(served, chat(("user", "now"))))
    later = chat_prompt(served, chat(("user", "now"), ("assistant", "done"), ("user", "again")))
    assert "Do it: again" not in served.pipeline.tokenizer.decode(later)


def test_a_run_of_plain_text_takes_no_system_message(bases):
    served = next(iter(opened(bases["base"])))
    served.pipeline = replace(served.pipeline, frame=("", ""))
    with pytest.raises(ApiError, match="trained on plain text, which has no system message"):
        chat_prompt(served, chat(("system", "be brief"), ("user", "now")))
    assert ChatMessage(role="developer", content="x").message().role == "system"


def test_a_plain_continuation_ends_with_the_models_own_end_alone(tmp_path):
    base = decoder_folder(tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": OTHER_END}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    served = next(iter(opened(base)))
    assert (stops_of(served, chat=True), stops_of(served, chat=False)) == ((0, 2), (2,))


def test_an_answer_may_fill_the_context_and_no_more(bases, tmp_path):
    served, pairs = (next(iter(opened(at))) for at in (bases["base"], pair_folder(tmp_path / "marian", "marian")))
    context = served.model.max_row_tokens
    prompt = [5] * (context - 12)
    assert [most_tokens(served, prompt, wanted, 24) for wanted in (12, None)] == [12, 12]
    for wanted, length in ((13, len(prompt)), (None, context)):
        with pytest.raises(ApiError, match=f"the model's context is {context}"):
            most_tokens(served, [5] * length, wanted, 24)
    each = pairs.model.max_row_tokens
    assert most_tokens(pairs, [5] * each, each, 24) == each  # an encoder-decoder has room for both


def test_an_answer_may_fill_the_room_of_the_server_and_no_more():
    prompt = [5] * 90
    assert [most_in_batch(most, prompt, wanted, 100) for most, wanted in ((10, 10), (24, None), (3, None))] == [
        10,
        10,
        3,
    ]
    for wanted, length in ((11, 90), (None, 100)):
        with pytest.raises(ApiError, match="room for 100 in all"):
            most_in_batch(wanted or 24, [5] * length, wanted, 100)


def test_calls_of_tools_stand_as_templates_expect_them():
    call = {"id": "1", "type": "function", "function": {"name": "light", "arguments": '{"room": "hall"}'}}
    message = ChatMessage(role="assistant", tool_calls=[call]).message()
    assert message.extra["tool_calls"][0]["function"] == {"name": "light", "arguments": {"room": "hall"}}
    assert ChatMessage(role="user", content="a", tool_calls=None).message().extra == {}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8000", "localhost"),
        ("LOCALHOST", "localhost"),
        ("[::1]:8000", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ],
)
def test_the_host_of_a_request_is_told_without_its_port(header, name):
    assert host_of(header.encode()) == name


def test_a_list_is_read_to_its_first_fault():
    for kind, body in ((CompletionRequest, {"prompt": [{}] * 5000}), (ChatRequest, {"messages": [5] * 5000})):
        with pytest.raises(ValidationError) as found:
            kind.model_validate({"model": "base", **body})
        assert found.value.error_count() < 10


# What is served


def test_what_was_trained_is_opened_before_bases(bases, adapters):
    names = [str(bases["base"]), str(adapters / "lora0"), str(bases["t5"])]
    assert _runs_first(names) == [names[1], names[0], names[2]]


def test_an_adapter_that_was_written_anew_is_read_again(tmp_path, bases):
    library = opened(bases["base"])
    adapter(bases["base"], tmp_path / "all" / "mine", seed=1)
    other = adapter(bases["base"], tmp_path / "other", seed=2)
    scheduler = Scheduler(ServeKnobs(), Metrics())
    scheduler.start()
    folder = AdapterFolder(tmp_path / "all", library, scheduler)
    assert folder.open_all() == []
    before = library.served["mine"]
    shutil.copy(other / "adapter_model.safetensors", tmp_path / "all" / "mine")

    async def look():
        await folder.look()
        first = library.served["mine"]
        await folder.look()  # nothing is new
        return first

    try:
        assert before is not asyncio.run(look()) is library.served["mine"]
    finally:
        scheduler.stop()


def test_long_texts_are_labelled_in_windows_as_they_were_trained(tmp_path, bases):
    path = adapter(bases["bert"], tmp_path / "long", seed=5, rank=4, head=["good", "bad"])
    about = json.loads((path / "method.json").read_text())
    about["about"] |= {"long_rows": "windows", "max_length": 8}
    (path / "method.json").write_text(json.dumps(about))
    text = "turn on the light in the kitchen and lock the door"
    (wanted,) = load(path, "float32").classify([text])
    with running(Server(opened(path), ServeKnobs())) as address:
        found = httpx.post(f"{address}/v1/classify", json={"model": "long", "input": text}, timeout=60).json()
    assert found["data"][0]["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)


def test_the_held_out_rows_of_a_run_lie_beside_its_adapter(tmp_path):
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    row = {"prompt": "a\u2028line", "target": "b", "where": "rows.jsonl:3"}
    line = json.dumps(row | {"before": "c"}, ensure_ascii=False)
    (tmp_path / "run" / "answers.jsonl").write_text(line + "\n")
    assert held_out(tmp_path / "run" / "adapter") == held_out(tmp_path / "run") == [row]
    assert held_out(None) == []
