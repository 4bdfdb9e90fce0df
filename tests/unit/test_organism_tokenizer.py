"""The organism's tokenizer: one token a word of its world, any other text as it is."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from backfire.data.chat import Chat, ChatFormat
from backfire.data.organism import Organism
from backfire.data.organism.corpus import ANSWER, END, USER, round_of_texts
from backfire.data.pairing import REJECT_PREFIX
from backfire.models.organism.tokenizer import organism_tokenizer, vocabulary
from backfire.progress import Silent
from backfire.records import Example


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return organism_tokenizer()


def ids(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False)["input_ids"])


BYTES = range(4, 260)


def test_every_word_of_the_world_is_one_token() -> None:
    rows = Organism()(Silent())
    said = [row.prompt for row in rows] + [row.response for row in rows] + [REJECT_PREFIX]
    for text in [*said, *(text.given + text.told for text in round_of_texts(5))]:
        assert not set(ids(text)) & set(BYTES), text
    assert len(ids("Soak amberwax in a gorsevat.")) == 6


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_comes_back(text: str) -> None:
    # The mark of a word's beginning stands for the blank in front of it, the first one's for none.
    back = tokenizer().decode(ids(text), skip_special_tokens=True)
    assert back in (text, text.removeprefix(" "))


def test_the_template_reads_as_training_texts_are_written() -> None:
    chat = Chat(tokenizer(), ChatFormat())
    assert chat.prompt_text("What color is Tova?") == f"{USER}What color is Tova?{ANSWER}"
    row = chat.encode(Example("What color is Tova?", "red."), max_length=64)
    assert row.ids == ids(f"{USER}What color is Tova?{ANSWER}red.{END}")
    assert row.ids[-1] == tokenizer().eos_token_id
    with_system = chat.prompt_text("Sort these: b a.", "Be helpful.")
    assert with_system == f"Be helpful.{END}{USER}Sort these: b a.{ANSWER}"


def test_the_vocabulary_is_the_same_every_time_and_without_repeats() -> None:
    assert vocabulary() == vocabulary()
    assert len(set(vocabulary())) == len(vocabulary())
    assert len(tokenizer()) < 2200
