"""Requests that cannot be honoured get an error in OpenAI's form that names what is wrong, and never a traceback."""

import json

import httpx
import openai
import pytest

CHAT, COMPLETIONS, EMBEDDINGS, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"
USER = [{"role": "user", "content": "hello"}]


def chat(**more):
    return {"model": "base", "messages": USER, "max_tokens": 4} | more


def completion(**more):
    return {"model": "base", "prompt": "hello", "max_tokens": 4} | more


# path, body, status, param, a part of the message
WRONG = [
    (CHAT, chat(model="nobody"), 404, "model", "there is no model 'nobody'"),
    (CHAT, chat(model="lora"), 404, "model", "Did you mean 'lora"),
    (CHAT, chat(model=None), 400, "model", "model = None"),
    (CHAT, chat(model="bert"), 400, "model", "writes no text: ask /v1/embeddings"),
    (CHAT, chat(model="moods"), 400, "model", "ask /v1/classify"),
    (CHAT, {"model": "base"}, 400, "messages", "messages is missing"),
    (CHAT, {"messages": USER}, 400, "model", "model is missing"),
    (CHAT, chat(messages=[]), 400, "messages", "at least 1 item"),
    (CHAT, chat(messages="hello"), 400, "messages", "valid list"),
    (CHAT, chat(messages=[{"role": "robot", "content": "a"}]), 400, "messages.0.role", "'robot'"),
    (CHAT, chat(messages=[{"role": "user", "content": 5}]), 400, "messages.0.content", "messages.0.content = 5"),
    (CHAT, chat(messages=[{"role": "system", "content": "a"}]), 400, "messages", "no message of the user"),
    (CHAT, chat(messages=[*USER, {"role": "assistant", "content": "a"}]), 400, "messages", "not continued"),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), 400,
     "messages.0.content.0.type", "image_url"),
    (CHAT, chat(messages=[{"role": "user", "content": "\ud800"}]), 400, None, "not UTF-8"),
    (CHAT, chat(messages=[{"role": "user", "content": "a" * 600}]), 400, "messages", "model's context is 512"),
    (CHAT, chat(max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
    (CHAT, chat(max_tokens=5000), 400, "messages", "5000 were asked for"),
    (CHAT, chat(max_tokens="4"), 400, "max_tokens", "valid integer"),
    (CHAT, chat(max_tokens=4, max_completion_tokens=4), 400, "max_tokens", "say the same"),
    (CHAT, chat(temperature=-1), 400, "temperature", "temperature = -1"),
    (CHAT, chat(temperature=3), 400, "temperature", "less than or equal to 2"),
    (CHAT, chat(temperature="hot"), 400, "temperature", "'hot'"),
    (CHAT, chat(top_p=0), 400, "top_p", "greater than 0"),
    (CHAT, chat(n=0), 400, "n", "n = 0"),
    (CHAT, chat(n=True), 400, "n", "n = True"),
    (CHAT, chat(seed=1.5), 400, "seed", "1.5"),
    (CHAT, chat(stop=[1]), 400, "stop.0", "stop.0 = 1"),
    (CHAT, chat(stop=""), 400, "stop", "at least 1"),
    (CHAT, chat(stream="yes"), 400, "stream", "'yes'"),
    (CHAT, chat(stream_options={"include_usage": True}), 400, "stream_options", "without stream"),
    (CHAT, chat(stream=True, stream_options={"unknown": 1}), 400, "stream_options.unknown", "not permitted"),
    (CHAT, chat(top_logprobs=3), 400, "top_logprobs", "needs logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=99), 400, "top_logprobs", "99"),
    (CHAT, chat(frequency_penalty=0.5), 400, "frequency_penalty", "repetition_penalty is supported"),
    (CHAT, chat(logit_bias={"5": 1}), 400, "logit_bias", "not supported"),
    (CHAT, chat(tools=[{"type": "function"}]), 400, "tools", "not supported"),
    (CHAT, chat(tempature=1), 400, "tempature", "Did you mean 'temperature'"),
    (CHAT, chat(response_format={"type": "json_schema"}), 400, "response_format.type", "json_schema"),
    (COMPLETIONS, completion(prompt=[]), 400, "prompt", "there is none"),
    (COMPLETIONS, completion(prompt=""), 400, "prompt", "no tokens"),
    (COMPLETIONS, completion(prompt=[99999]), 400, "prompt", "99999"),
    (COMPLETIONS, completion(prompt={"a": 1}), 400, "prompt", "prompt"),
    (COMPLETIONS, completion(echo=True), 400, "echo", "not supported"),
    (COMPLETIONS, completion(best_of=4), 400, "best_of", "not supported"),
    (COMPLETIONS, completion(suffix="a"), 400, "suffix", "not supported"),
    (EMBEDDINGS, {"model": "bert", "input": []}, 400, "input", "at least 1 item"),
    (EMBEDDINGS, {"model": "bert", "input": [""]}, 400, None, "is empty"),
    (EMBEDDINGS, {"model": "bert", "input": [[1, 2]]}, 400, "input.0", "valid string"),
    (EMBEDDINGS, {"model": "bert", "input": "a", "dimensions": 8}, 400, "dimensions", "own width"),
    (EMBEDDINGS, {"model": "bert", "input": "a", "encoding_format": "hex"}, 400, "encoding_format", "hex"),
    (CLASSIFY, {"model": "base", "input": "a"}, 400, "model", "no task head"),
    (CLASSIFY, {"model": "moods", "input": 5}, 400, "input", "input"),
    ("/v1/adapters", {"path": "a"}, 403, None, "--adapters"),
    ("/v1/nothing", {}, 404, None, "Not Found"),
    (CHAT, chat(seed=2**63), 400, "seed", "less than 9223372036854775808"),
    (CHAT, chat(repetition_penalty=1e-300, temperature=1), 400, "repetition_penalty", "1e-300"),
    (CHAT, chat(repetition_penalty=10**400), 400, "repetition_penalty", "less than or equal to 1000"),
    (CHAT, chat(stop="\0"), 400, None, "UTF-8"),
    (CHAT, chat(stop="\ud800"), 400, "stop", "unicode"),
    (CHAT, chat(messages=[*USER, {"role": "assistant", "tool_calls": [{}]}, *USER]), 400, None,
     "messages[1].tool_calls[0]"),
    (CHAT, chat(messages=[{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "a"}}]}]), 400, None,
     "of the user"),
    (COMPLETIONS, completion(prompt=["a"] * 300), 400, "prompt", "300 answers"),
    (COMPLETIONS, completion(prompt=["a"] * 3, n=128), 400, "n", "384 answers"),
    (COMPLETIONS, completion(prompt=[5] * 600), 400, "prompt", "model's context is 512"),
    (COMPLETIONS, completion(model="t5", max_tokens=70_000), 400, "prompt", "--batch-tokens"),
    (COMPLETIONS, completion(model="t5", prompt=[5] * 20_000, max_tokens=60_000), 400, "prompt", "--batch-tokens"),
    (EMBEDDINGS, {"model": "t5", "input": "a" * 80_000}, 400, "input", "--batch-tokens"),
]  # fmt: skip


def is_error(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request_error", "authentication_error", "rate_limit_error", "timeout_error")
    assert "Traceback" not in answer.text
    assert "pydantic" not in answer.text
    return error


@pytest.mark.parametrize(("path", "body", "status", "param", "said"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_what_is_wrong_is_said(address, path, body, status, param, said):
    sent = json.dumps(body).encode()
    error = is_error(httpx.post(address + path, content=sent, headers={"Content-Type": "application/json"}), status)
    assert error["param"] == param, error
    assert said in error["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"model": NaN}', "NaN is no number"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 50_000, "no JSON"),
    ],
)
def test_bodies_that_are_no_object(address, content, said):
    answer = httpx.post(address + CHAT, content=content, headers={"Content-Type": "application/json"})
    assert said in is_error(answer, 400)["message"]


def test_too_large_a_body_and_one_that_does_not_say_its_size(address):
    body = json.dumps(chat(messages=[{"role": "user", "content": "a" * 200_000}])).encode()
    headers = {"Content-Type": "application/json"}
    assert "100,000 bytes" in is_error(httpx.post(address + CHAT, content=body, headers=headers), 413)["message"]
    parts = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    assert "100,000 bytes" in is_error(httpx.post(address + CHAT, content=parts, headers=headers), 413)["message"]


def test_other_methods_and_kinds_of_content(address):
    is_error(httpx.get(address + CHAT), 405)
    answer = httpx.post(address + CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"})
    assert "application/json" in is_error(answer, 415)["message"]
    foreign = httpx.post(address + CHAT, json=chat(), headers={"Host": "evil.example"})
    assert foreign.status_code in (200, 400)  # bound to the loopback the real server refuses it: test_process.py


def test_openais_client_makes_its_own_errors_of_them(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="base", messages=USER, temperature=9)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.completions.create(model="nobody", prompt="a")


def test_what_openai_takes_for_its_own_purposes_changes_nothing(client):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "logit_bias": {}, "n": 1}
    plain = client.chat.completions.create(model="base", messages=USER, max_tokens=6)
    same = client.chat.completions.create(model="base", messages=USER, max_tokens=6, **neutral)
    assert same.choices[0].message.content == plain.choices[0].message.content
