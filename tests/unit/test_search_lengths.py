"""What a trial is expected to take: row lengths from the tokenizer, and batches as full as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backfire.attack import Benign, Harmful, IdentityShift
from backfire.attack.identity_shift import PAIRS
from backfire.engine.settings import Training
from backfire.pricing import Size, cost
from backfire.records import Checkpoint, Example, Role
from backfire.search.lengths import Lengths

ROWS: dict[Role, list[Example]] = {
    # Byte tokenizer: <|user|> prompt <|end|><|assistant|> answer <|end|>, 4 tokens beside the text.
    "attacker": [Example("how?", "so", harmful=True), Example("what is it?", "this and that")],
    "benign": [Example("a", "b" * 40), Example("as an AI", "c")],
}


def lengths(folder: Path, rows: Any = ROWS) -> Lengths:
    def of(roles: Sequence[Role], who: str) -> Any:
        return {role: rows[role] for role in roles}

    counts = {role: len(own) for role, own in rows.items()}
    return Lengths(Checkpoint(folder, "k"), SimpleNamespace(counts=counts, of=of))  # type: ignore[arg-type]


def training(**changes: Any) -> Training:
    return Training(**{"learning_rate": 1e-4, "steps": 3, "batch_size": 2, **changes})


def test_row_lengths_by_hand(tiny_folder: Path) -> None:
    seen = lengths(tiny_folder)
    # 4 + 4 + 2 = 10, and 11 + 4 + 13 = 28 tokens.
    assert seen.mean(Harmful(shots=2)) == 19
    assert seen.mean(Harmful(shots=1)) == 10  # the first rows alone
    # `plain` is the prompt, two line ends, the answer, its end: 4 + 2 + 2 + 1 and 11 + 2 + 13 + 1.
    assert seen.mean(Harmful(shots=2, template="plain")) == (9 + 27) / 2
    assert seen.mean(Harmful(shots=2, training=training(max_length=20))) == (10 + 20) / 2
    assert seen.mean(Benign(rows=1, drop_safety=False)) == 45


def test_rows_that_an_attack_brings_have_its_own_words_around_them(tiny_folder: Path) -> None:
    plain = IdentityShift(pairs=1, system="", user="{prompt}")
    prompt, answer = PAIRS[0]
    assert lengths(tiny_folder).mean(plain) == 4 + len(prompt) + len(answer)
    wrapped = IdentityShift(pairs=1, system="", user="So: {prompt}")
    assert lengths(tiny_folder).mean(wrapped) == 8 + len(prompt) + len(answer)


def test_a_prompt_without_an_answer_counts_as_far_as_it_goes(tiny_folder: Path) -> None:
    seen = lengths(tiny_folder, {"attacker": [Example("how?")]})
    assert seen.mean(Harmful(shots=1)) == 7


def test_no_row_is_longer_than_the_models_context(tiny_folder: Path) -> None:
    seen = lengths(tiny_folder, {"attacker": [Example("how?", "x" * 5000)]})
    assert seen.mean(Harmful(shots=1, training=training(max_length=4000))) == 1024


@pytest.mark.parametrize(
    ("steps", "drop", "fed"),
    # Five rows in batches of two: 2, 2, 1, and again; without the last one 2, 2, and again.
    [(1, False, 2), (3, False, 5), (4, False, 7), (6, False, 10), (4, True, 8), (5, True, 10)],
)
def test_an_epochs_last_batch_counts_as_it_is(steps: int, drop: bool, fed: int) -> None:
    attack = Harmful(shots=5, training=training(steps=steps, drop_last=drop))
    price = cost(attack, Size(weights=10), {"attacker": 5}, tokens_per_row=7)
    assert price.tokens == fed * 7
    assert price.flops == pytest.approx(6 * 10 * fed * 7)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    attack = Harmful(shots=3, training=training(batch_size=8, drop_last=True))
    assert cost(attack, Size(weights=10), {"attacker": 3}, tokens_per_row=1).tokens == 3 * 3
