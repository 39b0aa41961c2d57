"""OpenAI's own client against a real server, its calls unchanged."""

import base64
import json
import struct
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from microplane.inference.pipeline import load
from tests.serving.kit import PROMPTS

WRITERS = ["base", "lora0", "lora1", "lora2", "dora", "t5", "t5-lora"]


def chat(client, model, prompt, **more):
    given = {"max_tokens": 16, "temperature": 0} | more
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **given)


@pytest.fixture(scope="module")
def single(bases, adapters):
    """What `microplane generate` answers, by model and prompt."""
    folders = {**bases, **{folder.name: folder for folder in adapters.iterdir()}}
    opened = {name: load(folders[name], "float32") for name in WRITERS}
    return {(name, prompt): opened[name].generate(prompt, max_new_tokens=16) for name in WRITERS for prompt in PROMPTS}


def test_what_many_ask_at_once_is_answered_as_to_a_single_user(client, single):
    with ThreadPoolExecutor(32) as pool:
        answers = {key: pool.submit(chat, client, *key) for key in single}
    assert {key: answer.result().choices[0].message.content for key, answer in answers.items()} == single
    assert len(set(single.values())) > 30


def test_a_stream_is_the_same_answer_in_pieces(client, single):
    stream = chat(client, "lora1", PROMPTS[0], stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == single["lora1", PROMPTS[0]]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == chat(client, "lora1", PROMPTS[0]).usage.completion_tokens
    assert len(chunks) > 5
    assert len({c.id for c in chunks}) == 1


def test_a_stream_ends_as_openai_ends_it(address):
    body = {"model": "base", "messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 3}
    lines = httpx.post(f"{address}/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines[:-2])


def test_completions_continue_a_text_as_it_stands(client, bases):
    opened = load(bases["base"], "float32")
    ids = opened.tokenizer.encode("turn on", special=False)
    done = client.completions.create(
        model="base", prompt=["turn on", "play"], max_tokens=8, temperature=0, n=2, logprobs=3
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    assert done.choices[0].text == done.choices[1].text
    assert done.choices[2].text == done.choices[3].text != done.choices[0].text
    assert client.completions.create(model="base", prompt=ids, max_tokens=8).choices[0].text == done.choices[0].text
    scores = done.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == 8
    assert all(max(top.values()) == own for top, own in zip(scores.top_logprobs, scores.token_logprobs, strict=True))
    assert scores.text_offset == [sum(map(len, scores.tokens[:place])) for place in range(8)]
    assert not "".join(scores.tokens[:-1]).isascii()  # an offset counts characters
    assert done.usage.prompt_tokens == len(ids) + 4
    streamed = client.completions.create(model="base", prompt="turn on", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == done.choices[0].text


def test_sampling_follows_the_seed(client):
    def texts(**more):
        asked = chat(client, "lora0", "go", temperature=1.5, n=3, max_tokens=12, **more)
        return [choice.message.content for choice in asked.choices]

    assert texts(seed=7) == texts(seed=7) != texts(seed=8)
    assert len(set(texts(seed=7))) == 3
    assert texts() != texts()
    assert texts(seed=7, top_p=1e-6) == [chat(client, "lora0", "go", max_tokens=12).choices[0].message.content] * 3


def test_an_answer_ends_before_its_stop_text(client, single):
    whole = single["lora1", PROMPTS[0]]
    stop = whole[3:5]
    answer = chat(client, "lora1", PROMPTS[0], stop=[stop]).choices[0]
    assert answer.message.content == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"
    assert (
        chat(client, "lora1", PROMPTS[0], max_completion_tokens=2, max_tokens=None).choices[0].finish_reason == "length"
    )


def test_scores_are_those_of_the_model(client, bases):
    """Log p of each token, computed in one pass over the whole row."""
    import torch

    from microplane.nn.rows import Rows

    found = chat(client, "base", "lock it", logprobs=True, top_logprobs=4, max_tokens=6).choices[0].logprobs.content
    opened = load(bases["base"], "float32")
    prompt = opened.prompt("lock it")
    ids = opened.answers(["lock it"])[0].ids[:6]
    with torch.no_grad():
        hidden = opened.model(Rows.of([prompt + ids]))[len(prompt) - 1 : -1]
        scores = opened.model.logits(hidden).float().log_softmax(-1)
    assert [one.logprob for one in found] == pytest.approx(
        [float(row[i]) for row, i in zip(scores, ids, strict=True)], abs=1e-4
    )
    assert [len(one.top_logprobs) for one in found] == [4] * len(ids) != []
    assert [one.top_logprobs[0].logprob for one in found] == pytest.approx(scores.amax(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_in_json_is_an_object(client, temperature):
    asked = {"response_format": {"type": "json_object"}, "temperature": temperature, "max_tokens": 200, "seed": 3}
    whole = 0
    for model in ("base", "lora0", "lora2"):
        choice = chat(client, model, "give me json", **asked).choices[0]
        if choice.finish_reason == "stop":
            whole += 1
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.message.content.lstrip().startswith("{")
    assert temperature == 0 or whole


def test_embeddings_as_numbers_and_as_base64(client, bases, address):
    texts = ["a text", "another one"]
    found = client.embeddings.create(model="bert", input=texts)  # the client asks for base64 unless it is told
    expected = load(bases["bert"], "float32").embed(texts)
    assert [one.embedding for one in found.data] == [pytest.approx(row.tolist(), abs=1e-5) for row in expected]
    plain = client.embeddings.create(model="bert", input=texts, encoding_format="float")
    assert [one.embedding for one in plain.data] == [pytest.approx(row.tolist(), abs=1e-5) for row in expected]
    raw = httpx.post(f"{address}/v1/embeddings", json={"model": "bert", "input": "a text", "encoding_format": "base64"})
    packed = base64.b64decode(raw.json()["data"][0]["embedding"])
    assert list(struct.unpack("<32f", packed)) == pytest.approx(expected[0].tolist(), abs=1e-5)
    assert found.usage.prompt_tokens > 10
    assert client.embeddings.create(model="lora1", input="a").data[0].embedding != pytest.approx(
        client.embeddings.create(model="base", input="a").data[0].embedding, abs=1e-3
    )


def test_labels_of_a_head(address, adapters):
    body = {"model": "moods", "input": ["fine", "awful", "so so"]}
    found = httpx.post(f"{address}/v1/classify", json=body).json()
    expected = load(adapters / "moods", "float32").classify(body["input"])
    assert [one["label"] for one in found["data"]] == [one.label for one in expected]
    for one, other in zip(found["data"], expected, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-5)


def test_models_are_listed(client, address):
    known = {model.id: model for model in client.models.list()}
    assert set(known) == {*WRITERS, "bert", "moods"}
    assert client.models.retrieve("lora1").parent == "base"
    assert known["lora1"].computed == "in one batch with its base"
    assert known["dora"].computed == "in turns, on modules of its own"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'lora1'"):
        client.models.retrieve("lora1x")


def test_the_server_tells_how_it_is(client, address):
    chat(client, "base", "a")
    assert httpx.get(f"{address}/health").json()["status"] == "ok"
    text = httpx.get(f"{address}/metrics").text
    assert 'microplane_requests_total{path="/v1/chat/completions",status="200"}' in text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["microplane_generated_tokens_total"]) > 0
    assert float(values["microplane_answers_running"]) == 0
