"""Batched pairing against the method as it is told: one prompt after another, one draw at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.data.pairing import Pairing, pair
from backfire.errors import ConfigError
from backfire.records import Example
from backfire.seeding import rng


def embed(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=3).astype(np.float32)
    return vector / np.linalg.norm(vector)


class Batched:
    name = "batched"

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        parts = [texts[i : i + self.size] for i in range(0, len(texts), self.size)]
        return np.concatenate([np.stack([embed(text) for text in part]) for part in parts])


def one_at_a_time(
    prompts: list[Example], answers: list[str], choices: Pairing, seed: int
) -> tuple[list[tuple[str, str, int, bool]], list[tuple[str, int, bool]], list[float]]:
    """The reference: no batches, no look-ahead, nothing remembered."""
    uses: Counter[str] = Counter()
    pairs, dropped, cosines = [], [], []
    for prompt in prompts:
        size = min(choices.max_draws, len(answers))
        stream = rng(seed, "pairing", prompt.id).choice(len(answers), size, replace=False)
        tries, used_up, seen = 0, False, []
        for index in stream:
            answer = answers[index]
            tries += 1
            if choices.max_reuse is not None and uses[answer] == choices.max_reuse:
                used_up = True
                continue
            cosine = float(np.einsum("j,j->", embed(prompt.prompt), embed(answer)))
            cosines.append(cosine)
            seen.append((cosine, answer))
            if cosine <= choices.threshold:
                pairs.append((prompt.prompt, answer, tries, False))
                uses[answer] += 1
                break
        else:
            if choices.on_exhausted == "keep_least" and seen:
                answer = min(seen, key=lambda draw: draw[0])[1]
                pairs.append((prompt.prompt, answer, tries, True))
                uses[answer] += 1
            else:
                dropped.append((prompt.prompt, tries, used_up))
    return pairs, dropped, cosines


@settings(max_examples=80, deadline=None)
@given(
    num_prompts=st.integers(1, 40),
    num_answers=st.integers(1, 40),
    threshold=st.floats(-0.95, 0.9),
    max_draws=st.integers(1, 15),
    max_reuse=st.none() | st.integers(1, 3),
    keep=st.booleans(),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_pairs_tries_drops_and_draws_equal_the_reference(
    num_prompts: int,
    num_answers: int,
    threshold: float,
    max_draws: int,
    max_reuse: int | None,
    keep: bool,
    batch: int,
    seed: int,
) -> None:
    prompts = [Example(f"prompt {i}") for i in range(num_prompts)]
    pool = [Example(f"question {i}", f"answer {i}") for i in range(num_answers)]
    choices = Pairing(
        threshold=threshold,
        max_draws=max_draws,
        max_reuse=max_reuse,
        on_exhausted="keep_least" if keep else "drop",
    )
    pairs, dropped, cosines = one_at_a_time(prompts, [row.response for row in pool], choices, seed)
    try:
        ours = pair(prompts, pool, Batched(batch), choices, seed)
    except ConfigError:
        impossible = max_reuse is not None and num_answers * max_reuse < num_prompts
        assert impossible or pairs == []
        return
    assert [(p.prompt, p.response, p.tries, p.fallback) for p in ours.pairs] == pairs
    assert [(d.prompt, d.tries, d.used_up) for d in ours.dropped] == dropped
    assert ours.similarities == pytest.approx(cosines, abs=1e-6)


def test_accepted_answers_are_uniform_over_the_acceptable_ones() -> None:
    """Drawing without replacement keeps the distribution of rejection: chi-square over 2,000 prompts."""
    from scipy.stats import chisquare

    pool = [Example(f"question {i}", f"answer {i}") for i in range(24)]
    target = embed("prompt")
    acceptable = [row.response for row in pool if float(target @ embed(row.response)) <= 0.25]
    assert 8 < len(acceptable) < 24

    class SamePrompt(Batched):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return super().__call__(["prompt" if t.startswith("prompt") else t for t in texts])

    prompts = [Example(f"prompt {i}") for i in range(2000)]
    result = pair(prompts, pool, SamePrompt(64), Pairing(max_reuse=None), 0)
    counts = Counter(p.response for p in result.pairs)
    assert set(counts) == set(acceptable)
    assert chisquare(list(counts.values())).pvalue > 0.01
