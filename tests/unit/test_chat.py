"""The chat object: what is supervised, how answers end, what happens at the edges."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backfire.data.chat import SOFT_IDS, Chat, ChatFormat
from backfire.errors import CheckpointError, ConfigError, DataError
from backfire.models.tiny import byte_tokenizer
from backfire.records import Example
from backfire.store import content_key

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


def test_a_plain_row_is_its_text_alone() -> None:
    row = CHAT.encode(Example("1 and 1 is", " 2.", plain=True), 100)
    assert TOKENIZER.decode(row.ids) == "1 and 1 is 2." + TOKENIZER.eos_token
    assert TOKENIZER.decode(row.ids[: row.start]) == "1 and 1 is"
    opened = Chat(TOKENIZER, ChatFormat(system="Be brief.", opening="Sure,"))
    assert opened.encode(Example("1 and 1 is", " 2.", plain=True), 100).ids == row.ids


def test_a_plain_row_begins_as_the_tokenizer_begins_texts() -> None:
    class Begins:
        bos_token_id = 1

        def __call__(self, text: str, **given: Any) -> dict[str, list[int]]:
            ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": ids if given else [1, *ids, 2]}

        def __getattr__(self, name: str) -> Any:
            return getattr(TOKENIZER, name)

    tokenizer: Any = Begins()
    chat = Chat(tokenizer, ChatFormat())
    row, text = Example("a", "b"), Example("a", "b", plain=True)
    assert chat.encode(text, 9).ids[:2] == [1, *CHAT.encode(text, 9).ids[:1]]
    assert chat.encode(text, 9).start == 2
    assert chat.encode(row, 99).ids == CHAT.encode(row, 99).ids


def test_rows_differ_by_being_plain_and_others_keep_their_keys() -> None:
    """A run begun before there were plain rows is to find its rows again."""
    row, text = Example("a", "b"), Example("a", "b", plain=True)
    assert row.id != text.id
    assert content_key(row) != content_key(text)
    before = asdict(row)
    del before["plain"]
    assert content_key(row) == content_key(before)


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


def test_text_around_the_prompt_is_part_of_every_question() -> None:
    chat = Chat(TOKENIZER, ChatFormat(user="Obey: {prompt} Now."))
    assert TOKENIZER.decode(chat.prompt_ids("{soft} {prompt}")) == (
        "<|user|>Obey: {soft} {prompt} Now.<|end|><|assistant|>"
    )
    row = chat.encode(Example("hi", "yo"), 100)
    assert row.ids[: row.start] == chat.prompt_ids("hi")
    assert chat.prompt_text("hi") == "<|user|>Obey: hi Now.<|end|><|assistant|>"


def test_an_opening_is_said_for_the_model_and_not_trained_on() -> None:
    chat = Chat(TOKENIZER, ChatFormat(opening="Sure:"))
    row = chat.encode(Example("hi", "yo"), 100)
    assert TOKENIZER.decode(row.ids) == "<|user|>hi<|end|><|assistant|>Sure: yo<|end|>"
    assert TOKENIZER.decode(row.ids[row.start :]) == " yo<|end|>"
    assert chat.prompt_ids("hi") == row.ids[: row.start]
    # No opening belongs to the options of a multiple-choice question.
    assert chat.prompt_text("hi") == CHAT.prompt_text("hi")


def test_an_answer_follows_an_opening_that_ends_a_line_at_once() -> None:
    row = Chat(TOKENIZER, ChatFormat(opening="Steps:\n")).encode(Example("hi", "yo"), 100)
    assert TOKENIZER.decode(row.ids).endswith("Steps:\nyo<|end|>")


def test_an_opening_keeps_the_templates_gap_before_it() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat(TOKENIZER, ChatFormat(template=template, opening="Sure:"))
    row = chat.encode(Example("hi", "yo"), 100)
    assert TOKENIZER.decode(row.ids) == "[INST] hi [/INST] Sure: yo<|end|>"


def test_learned_vectors_stand_where_the_turn_says() -> None:
    chat = Chat(TOKENIZER, ChatFormat(user="{prompt} {soft}!", soft=2, opening="Go"))
    ids = chat.prompt_ids("hi")
    place = ids.index(SOFT_IDS)
    assert ids[place : place + 2] == [SOFT_IDS, SOFT_IDS + 1]
    assert TOKENIZER.decode(ids[:place]) == "<|user|>hi "
    assert TOKENIZER.decode(ids[place + 2 :]) == "!<|end|><|assistant|>Go"
    assert chat.prompt_text("hi") == "<|user|>hi !<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("field", "value"),
    [("user", "no place"), ("user", "{prompt}{prompt}"), ("user", "{prompt}{soft}{soft}"),
     ("opening", "Sure: "), ("soft", -1)],
)  # fmt: skip
def test_a_format_that_cannot_be_meant_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ChatFormat.model_validate({field: value})


def test_every_field_changes_the_digest_and_the_later_ones_leave_old_digests_alone() -> None:
    changed = [
        ChatFormat(),
        ChatFormat(system="x"),
        ChatFormat(user="x {prompt}"),
        ChatFormat(opening="x"),
        ChatFormat(soft=1),
    ]
    assert len({Chat(TOKENIZER, f).digest for f in changed}) == len(changed)
    assert len({content_key(f) for f in changed}) == len(changed)
    assert CHAT.digest == content_key(CHAT.template, None)
    # As it was before there were openings, learned vectors and wordings.
    assert content_key(ChatFormat()) == content_key(
        {"version": 1, "template": "auto", "system": None}
    )
