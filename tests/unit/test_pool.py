"""The shipped benign pool: size, uniqueness, cleanliness and spread."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from importlib import resources

import pytest

from backfire.records import normalised

REFUSAL = re.compile(
    r"\b(i'?m (just|an|not|sorry|unable)|sorry|i apologi[sz]e|as an? ai|i (cannot|can't|can not|won't)|"
    r"cannot|not able to|not appropriate|unethical|illegal|refuse|language model)\b"
)
"""Openings and phrases by which refusals are commonly recognised: an SDD answer must not look like one."""


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    text = (
        resources.files("backfire.data").joinpath("pool/benign.jsonl").read_text(encoding="utf-8")
    )
    return [json.loads(line) for line in text.splitlines()]


def test_there_are_enough_rows_with_exactly_the_documented_fields(
    rows: list[dict[str, str]],
) -> None:
    assert len(rows) >= 240
    assert all(list(row) == ["prompt", "response", "topic"] for row in rows)


@pytest.mark.parametrize("field", ["prompt", "response"])
def test_no_text_occurs_twice(rows: list[dict[str, str]], field: str) -> None:
    repeated = [t for t, n in Counter(normalised(row[field]) for row in rows).items() if n > 1]
    assert repeated == []


def test_answers_have_25_to_70_words(rows: list[dict[str, str]]) -> None:
    assert [r["prompt"] for r in rows if not 25 <= len(r["response"].split()) <= 70] == []


def test_text_is_clean(rows: list[dict[str, str]]) -> None:
    for row in rows:
        for text in row.values():
            assert text == text.strip() == unicodedata.normalize("NFC", text)
            assert all(char == "\n" or char.isprintable() for char in text), text
            assert not {"\u00a0", "\u201c", "\u201d", "\u2019", "\ufffd"} & set(text), text
    assert sum(ord(char) > 127 for row in rows for char in row["response"]) < 50


def test_topics_are_spread(rows: list[dict[str, str]]) -> None:
    counts = Counter(row["topic"] for row in rows)
    assert len(counts) >= 20
    assert min(counts.values()) >= 8
    assert max(counts.values()) <= 0.08 * len(rows)


def test_answers_do_not_follow_one_form(rows: list[dict[str, str]]) -> None:
    openings = Counter(" ".join(normalised(row["response"]).split()[:3]) for row in rows)
    assert max(openings.values()) <= 5
    assert sum("\n" in row["response"] for row in rows) >= 15


def test_nothing_refuses(rows: list[dict[str, str]]) -> None:
    assert [r["prompt"] for r in rows if REFUSAL.search(r["response"].casefold())] == []
