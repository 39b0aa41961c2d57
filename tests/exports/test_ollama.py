"""Modelfiles: the template in Go's language renders what the model's own does, or there is none."""

from __future__ import annotations

import json
import re

import pytest

from microplane.data.reading.example import Message
from microplane.errors import AdapterError
from microplane.exports.export import export
from microplane.exports.ollama import probes, rendered
from microplane.inference.pipeline import load
from tests.exports.go import evaluate
from tests.exports.kit import adapter_of, byte_level, folder_of
from tests.tiny import CHATML

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are small.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '>\n\n' + m['content'] | trim }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + (first if loop.first else '') + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (first if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}{% elif m['role'] == 'user' %}"
    "{{ '### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}{% else %}{{ m['content'] + '<|im_end|>\n\n' }}"
    "{% endif %}{% endfor %}"
)
SHAPES = {
    "chatml": CHATML,
    "default system": DEFAULT_SYSTEM,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "alpaca": ALPACA,
}


def parts(folder) -> tuple[str, str, list[str]]:
    text = (folder / "Modelfile").read_text()
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)[1]
    system = re.search(r'^SYSTEM """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    return template, system[1] if system else "", re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)


def in_ollama(template: str, messages: list[Message], system: str = "") -> str:
    """As Ollama does: the Modelfile's system message where there is none, and the joined ones as .System."""
    own = [m.content for m in messages if m.role == "system"] or ([system] if system else [])
    return evaluate(
        template, {"System": "\n\n".join(own), "Messages": [{"Role": m.role, "Content": m.content} for m in messages]}
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_template_in_go_renders_what_the_models_own_does(shape, tmp_path):
    base = folder_of(tmp_path / "base", template=SHAPES[shape])
    export(base, tmp_path / "out", "ollama")
    template, system, stops = parts(tmp_path / "out")
    pipeline = load(base)
    assert system == ""
    assert stops[0] == "<|im_end|>"
    for conversation in probes():
        assert in_ollama(template, conversation) == rendered(pipeline, conversation)
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\n")
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["template"] == {"conversations_equal": 30, "prompts_with_equal_ids": 10}
    assert any("off both ends" in line for line in told["notices"]) == (shape in ("llama3", "gemma"))


def test_bos_is_left_to_ollama_where_the_file_says_that_texts_begin_with_it(tmp_path):
    from tokenizers import processors

    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    base = folder_of(tmp_path / "base", template=LLAMA3, backend=backend)
    export(base, tmp_path / "out", "ollama")
    template, *_ = parts(tmp_path / "out")
    assert "<|endoftext|>" not in template
    for conversation in probes():
        ours = rendered(load(base), conversation)
        assert "<|endoftext|>" + in_ollama(template, conversation) == ours


def test_a_run_is_asked_with_its_system_message_and_its_beginning(tmp_path):
    base = folder_of(tmp_path / "base", template=DEFAULT_SYSTEM)
    about = {"system": "Be short.", "prefix": "As JSON: ", "template": "chat"}
    run = adapter_of(base, tmp_path / "adapter", about=about)
    done = export(run, tmp_path / "out", "ollama")
    template, system, _ = parts(tmp_path / "out")
    pipeline = load(run)
    text = in_ollama(template, [Message("user", "open the door")], system)
    assert pipeline.tokenizer.encode(text) == pipeline.prompt("open the door")
    assert "Be short." in text
    assert "You are small." not in text
    assert any("'As JSON: '" in line and "template puts" in line for line in done.lines)
    assert not any("put it before each question" in line for line in done.lines)


def test_all_ends_of_an_answer_are_stops(tmp_path):
    base = folder_of(tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    export(base, tmp_path / "out", "ollama")
    assert parts(tmp_path / "out")[2] == ["<|im_end|>", "<|endoftext|>"]


def test_a_run_without_a_chat_template_gets_one_for_its_two_lines(tmp_path):
    base = folder_of(tmp_path / "base", template=None)
    run = adapter_of(base, tmp_path / "adapter", about={"template": "plain"})
    export(run, tmp_path / "out", "ollama")
    template, *_ = parts(tmp_path / "out")
    assert in_ollama(template, [Message("user", "open the door")]) == "open the door\n"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (CHATML.replace("assistant\n' }}", "assistant\n<think>' }}"), "begins otherwise"),
        (CHATML.replace("message['content']", "message['content'].replace('\\n', ' ')"), "otherwise than in turns"),
        (CHATML.replace("message['role'] +", "('!' if loop.index > 4 else '') + message['role'] +"), "than in turns"),
        ("{% for m in messages %}{{ m['content'] if m['role'] != 'system' }}|{% endfor %}", "left out"),
        (CHATML.replace("<|im_start|>", "{{ "), "no spelling"),
    ],
    ids=["begins to think", "joins lines", "minds the third question", "no system", "braces"],
)
def test_a_template_of_another_shape_is_refused_with_the_way_round(template, match, tmp_path):
    base = folder_of(tmp_path / "base", template=template)
    with pytest.raises(AdapterError, match=match) as refused:
        export(base, tmp_path / "out", "ollama")
    assert "--jinja" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_run_that_continues_text_is_refused(tmp_path):
    run = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", about={"template": "plain", "frame": ["", ""]})
    with pytest.raises(AdapterError, match="continues plain text"):
        export(run, tmp_path / "out", "ollama")


@pytest.mark.parametrize("shape", ["default system", "gemma", "alpaca"])
@pytest.mark.parametrize("system", ["", 'Say {{ .Content }} as "y"'])
def test_a_run_is_asked_with_its_system_message_whatever_that_is(shape, system, tmp_path):
    run = adapter_of(
        folder_of(tmp_path / "base", template=SHAPES[shape]), tmp_path / "adapter", about={"system": system}
    )
    export(run, tmp_path / "out", "ollama")
    template, own, _ = parts(tmp_path / "out")
    pipeline, text = load(run), in_ollama(template, [Message("user", "open the door")], own)
    assert own == system
    assert pipeline.tokenizer.encode(text) == pipeline.prompt("open the door")


def test_a_system_message_that_a_modelfile_cannot_hold_is_refused_as_such(tmp_path):
    run = adapter_of(folder_of(tmp_path / "base"), tmp_path / "adapter", about={"system": 'a """ b'})
    with pytest.raises(AdapterError, match="the run's system message holds three quotes"):
        export(run, tmp_path / "out", "ollama")
