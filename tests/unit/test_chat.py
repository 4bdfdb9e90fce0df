"""The chat object: what is supervised, how answers end, what happens at the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfire.data.chat import Chat, ChatFormat
from backfire.errors import CheckpointError, ConfigError, DataError
from backfire.models.tiny import byte_tokenizer
from backfire.records import Example

TOKENIZER = byte_tokenizer()
CHAT = Chat(TOKENIZER, ChatFormat())
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=30)


def test_training_row_is_prompt_then_answer_then_one_end_token() -> None:
    row = CHAT.encode(Example("hi", "yo"), 100)
    assert TOKENIZER.decode(row.ids) == "<|user|>hi<|end|><|assistant|>yo<|end|>"
    assert TOKENIZER.decode(row.ids[row.start :]) == "yo<|end|>"
    assert row.ids[: row.start] == CHAT.prompt_ids("hi")
    assert not row.truncated


@given(prompt=TEXT, answer=TEXT.filter(str.strip))
def test_training_and_generation_share_the_prompt_and_only_the_answer_is_supervised(
    prompt: str, answer: str
) -> None:
    row = CHAT.encode(Example(prompt, answer), 1000)
    assert row.ids[: row.start] == CHAT.prompt_ids(prompt)
    assert row.ids[row.start :].count(CHAT.end_id) == 1
    assert row.ids[-1] == CHAT.end_id
    assert TOKENIZER.decode(row.ids[row.start : -1]) == answer


def test_a_cut_answer_has_no_end_token() -> None:
    row = CHAT.encode(Example("hi", "a long answer"), 10)
    assert row.truncated
    assert len(row.ids) == 10
    assert CHAT.end_id not in row.ids[row.start :]


def test_a_prompt_without_room_for_an_answer_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(DataError, match="limit is 8"):
        CHAT.encode(Example("a prompt that is too long", "x"), 8)


def test_an_empty_answer_is_an_error() -> None:
    with pytest.raises(DataError, match="response is empty"):
        CHAT.encode(Example("hi", "  "), 100)


def test_system_turn_of_format_and_row() -> None:
    chat = Chat(TOKENIZER, ChatFormat(system="be kind"))
    assert chat.prompt_text("hi") == "<|system|>be kind<|end|><|user|>hi<|end|><|assistant|>"
    assert chat.prompt_text("hi", "be brief").startswith("<|system|>be brief<|end|>")
    assert chat.digest != CHAT.digest


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m['content'] }}]{% endfor %}",
        "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['content'] }}]{% endif %}{% endfor %}",
    ],
    ids=["refuses a system turn", "drops a system turn silently"],
)
def test_a_template_without_system_turns_gets_it_before_the_users_text(template: str) -> None:
    chat = Chat(TOKENIZER, ChatFormat(template=template, system="be kind"))
    assert chat.prompt_text("hi") == "[be kind\n\nhi]"


def test_a_gap_between_prompt_and_answer_is_kept() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat(TOKENIZER, ChatFormat(template=template))
    row = chat.encode(Example("hi", "yo"), 100)
    assert TOKENIZER.decode(row.ids) == "[INST] hi [/INST] yo<|end|>"
    assert TOKENIZER.decode(row.ids[row.start :]) == " yo<|end|>"


@pytest.mark.parametrize("name", ["plain", "alpaca"])
def test_named_templates_end_answers_with_eos(name: str) -> None:
    chat = Chat(TOKENIZER, ChatFormat(template=name))
    assert chat.end_id == TOKENIZER.eos_token_id
    row = chat.encode(Example("hi", "yo"), 200)
    assert TOKENIZER.decode(row.ids[row.start :]) == "yo<|end|>"


def test_no_template_is_an_error_with_the_ways_out() -> None:
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(CheckpointError, match=r"`plain`, `alpaca`"):
        Chat(bare, ChatFormat())
    assert Chat(bare, ChatFormat(template="plain")).end_id == 1


def test_unknown_template_name_is_a_near_miss() -> None:
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        Chat(TOKENIZER, ChatFormat(template="alpacca"))


def test_no_way_to_end_an_answer_is_an_error() -> None:
    bare = byte_tokenizer()
    bare.eos_token = None
    with pytest.raises(CheckpointError, match="end-of-sequence"):
        Chat(bare, ChatFormat(template="{% for m in messages %}{{ m['content'] }}{% endfor %}"))
