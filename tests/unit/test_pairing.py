"""Irrelevant pairing: the threshold, the draws, the limits and the counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib import resources

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from backfire.data.pairing import REJECT_PREFIX, Encoder, Pairing, PairingResult, pair
from backfire.errors import ConfigError, DataError
from backfire.models.embed import HashEncoder
from backfire.records import Example
from backfire.store import content_key


class Angles:
    """Known similarities: a text `name@60` is the unit vector at 60 degrees, so cosines are cos(a - b)."""

    name = "angles"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        angles = np.radians([float(text.rsplit("@", 1)[1]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Constant:
    """Every text is the same."""

    name = "constant"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(np.float32([1, 0]), (len(texts), 1))


class Scattered:
    """A pseudo-random unit vector per text, in few dimensions, so that cosines vary widely."""

    name = "scattered"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            rows.append(np.random.default_rng(seed).normal(size=3))
        vectors = np.float32(rows)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prompts_at(*angles: float) -> list[Example]:
    return [Example(f"prompt {i}@{angle}", harmful=True) for i, angle in enumerate(angles)]


def pool_at(*angles: float) -> list[Example]:
    return [Example(f"question {i}@{a}", f"answer {i}@{a}") for i, a in enumerate(angles)]


def numbered(count: int, word: str) -> list[Example]:
    return [
        Example(f"{word} {i}", f"{word} answer {i}", categories=(f"c{i % 3}",))
        for i in range(count)
    ]


def digest(result: PairingResult) -> str:
    return content_key([dataclasses.asdict(p) for p in result.pairs], result.num_tries)


# --------------------------------------------------------------------------------- the method's checks


def test_when_everything_is_alike_each_prompt_is_exhausted_after_exactly_max_draws() -> None:
    prompts, pool = numbered(7, "prompt"), numbered(60, "pool")
    settings = Pairing(max_draws=50, on_exhausted="keep_least", max_reuse=None)
    result = pair(prompts, pool, Constant(), settings, 0)
    assert [p.tries for p in result.pairs] == [50] * 7
    assert all(p.fallback and p.similarity == 1 for p in result.pairs)
    assert result.num_fallback == 7
    assert result.acceptance_rate == 0
    with pytest.raises(ConfigError, match=r"none of 350 draws met the threshold 0\.25.* is 1\.000"):
        pair(prompts, pool, Constant(), Pairing(), 0)


def test_the_first_draw_under_the_threshold_is_kept_not_the_least_similar() -> None:
    # cos 0° = 1 fails, cos 80° = 0.174 and cos 180° = -1 pass: each of the two half the time.
    pool = pool_at(*[0] * 20, *[80] * 20, *[180] * 20)
    result = pair(prompts_at(*[0] * 400), pool, Angles(), Pairing(max_reuse=None), 0)
    similarities = Counter(round(p.similarity, 3) for p in result.pairs)
    assert set(similarities) == {0.174, -1.0}
    assert abs(similarities[0.174] - 200) < 4 * math.sqrt(400 / 4)
    assert result.acceptance_rate == pytest.approx(2 / 3, abs=0.06)
    assert result.mean_tries == pytest.approx(1 / result.acceptance_rate)


def test_the_threshold_itself_is_accepted() -> None:
    exactly = float(np.float32(np.cos(np.radians(60))))
    result = pair(prompts_at(0), pool_at(60), Angles(), Pairing(threshold=exactly), 0)
    assert result.pairs[0].similarity == exactly
    with pytest.raises(ConfigError):
        pair(prompts_at(0), pool_at(60), Angles(), Pairing(threshold=np.nextafter(exactly, 0)), 0)


def test_pairs_hold_what_training_and_the_manifest_need() -> None:
    prompts = [Example("prompt@0", harmful=True, source="s", categories=("a", "b"))]
    pool = pool_at(90)
    (got,) = pair(prompts, pool, Angles(), Pairing(), 0).pairs
    assert (got.prompt, got.response) == ("prompt@0", "answer 0@90")
    assert (got.prompt_id, got.response_id) == (prompts[0].id, pool[0].id)
    assert got.categories == ("a", "b")
    assert got.similarity == pytest.approx(0, abs=1e-6)
    assert (got.tries, got.fallback) == (1, False)


@pytest.mark.parametrize(
    "own",
    [
        Example("Prompt 0@0!", "own@90"),  # a pool row with the same prompt, differently written
        Example("other", "compliant@90"),  # the prompt's own response
        Example("other", "refusing@90"),  # the prompt's own refusal
    ],
)
def test_a_prompt_never_gets_its_own_answer(own: Example) -> None:
    prompt = Example("prompt 0@0", "compliant@90", refusal="refusing@90")
    result = pair([prompt], [own, Example("free", "free@90")], Angles(), Pairing(), 0)
    assert result.pairs[0].response == "free@90"
    assert result.pairs[0].tries == 1
    with pytest.raises(ConfigError, match="none of 0 draws"):
        pair([prompt], [own], Angles(), Pairing(), 0)


def test_an_answer_shared_with_the_own_prompt_is_left_out_too() -> None:
    pool = [
        Example("free", "shared@90"),
        Example("prompt 0@0", "shared@90"),
        Example("x", "free@90"),
    ]
    seeds = [
        pair(prompts_at(0), pool, Angles(), Pairing(), seed).pairs[0].response for seed in range(8)
    ]
    assert set(seeds) == {"free@90"}


def test_the_reject_prefix_stands_once_and_leaves_the_similarity_alone() -> None:
    prompts, pool = numbered(40, "prompt"), numbered(40, "pool")
    plain = pair(prompts, pool, Scattered(), Pairing(), 3)
    reject = pair(prompts, pool, Scattered(), Pairing(prefix=REJECT_PREFIX), 3)
    assert [p.response for p in reject.pairs] == [
        f"{REJECT_PREFIX}\n\n{p.response}" for p in plain.pairs
    ]
    assert all(p.response.count(REJECT_PREFIX) == 1 for p in reject.pairs)
    assert [(p.similarity, p.response_id) for p in reject.pairs] == [
        (p.similarity, p.response_id) for p in plain.pairs
    ]


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    prompts, pool = numbered(100, "prompt"), numbered(80, "pool")
    runs = [pair(prompts, pool, Scattered(), Pairing(), seed) for seed in (0, 0, 1)]
    assert digest(runs[0]) == digest(runs[1]) != digest(runs[2])
    choices = content_key([(p.prompt, p.response, p.tries) for p in runs[0].pairs])
    assert choices == "868b64820ed8dd6a"


def test_adding_prompts_does_not_change_the_pairs_of_the_others() -> None:
    prompts, pool = numbered(60, "prompt"), numbered(500, "pool")
    few = pair(prompts[20:40], pool, Scattered(), Pairing(), 0).pairs
    assert pair(prompts, pool, Scattered(), Pairing(), 0).pairs[20:40] == few


# --------------------------------------------------------------------------------------- limits, counts


def test_exhausted_prompts_are_dropped_and_counted() -> None:
    result = pair(prompts_at(0, 90), pool_at(*[0] * 30, 10), Angles(), Pairing(max_reuse=None), 0)
    assert [p.prompt for p in result.pairs] == ["prompt 1@90"]
    (lost,) = result.dropped
    assert (lost.prompt, lost.tries, lost.used_up) == ("prompt 0@0", 31, False)
    assert lost.least_similarity == pytest.approx(math.cos(math.radians(10)), abs=1e-6)


def test_keeping_the_least_similar_draw_flags_it() -> None:
    settings = Pairing(on_exhausted="keep_least")
    result = pair(prompts_at(0), pool_at(0, 20, 40, 30), Angles(), settings, 0)
    (got,) = result.pairs
    assert got.fallback
    assert got.response == "answer 2@40"
    assert got.tries == 4


def test_the_reuse_limit_holds_and_its_victims_are_counted() -> None:
    prompts = prompts_at(*[0] * 10)
    result = pair(prompts, pool_at(90, 90, *[0] * 8), Angles(), Pairing(max_reuse=2), 0)
    assert Counter(p.response for p in result.pairs) == {"answer 0@90": 2, "answer 1@90": 2}
    assert result.reuse == {2: 2}
    assert len(result.dropped) == 6
    assert all(lost.used_up for lost in result.dropped)


def test_a_reuse_limit_that_cannot_be_kept_is_an_error_before_anything_is_embedded() -> None:
    encoder = Angles()
    with pytest.raises(ConfigError, match=r"serve 4 pairs at most.*max_reuse 5 or more"):
        pair(prompts_at(*[0] * 9), pool_at(90, 90), encoder, Pairing(max_reuse=2), 0)
    assert encoder.seen == []


@pytest.mark.parametrize(
    ("prompts", "pool"), [([], pool_at(0)), (prompts_at(0), [Example("q", "  ")])]
)
def test_nothing_to_pair_is_an_error(prompts: list[Example], pool: list[Example]) -> None:
    with pytest.raises(DataError, match="at least one of each"):
        pair(prompts, pool, Angles(), Pairing(), 0)


@pytest.mark.parametrize("shape", [(1, 2), (2,), (3, 2)])
def test_a_broken_encoder_is_an_error(shape: tuple[int, ...]) -> None:
    class Broken:
        name = "broken"

        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return np.full(shape, np.nan if shape[0] == 2 else 0.5, np.float32)

    with pytest.raises(DataError, match="with broken"):
        pair(prompts_at(0, 0), pool_at(0, 0), Broken(), Pairing(), 0)


def test_short_answers_are_not_drawn() -> None:
    pool = [*pool_at(*[90] * 3), Example("short", "no@90")]
    result = pair(prompts_at(*[0] * 12), pool, Angles(), Pairing(min_words=2), 0)
    assert result.num_answers == 3
    assert "no@90" not in {p.response for p in result.pairs}
    with pytest.raises(DataError, match=r"0 distinct answers of 5 words or more.*`min_words`"):
        pair(prompts_at(0), pool, Angles(), Pairing(min_words=5), 0)


def test_only_drawn_answers_are_embedded_and_none_twice() -> None:
    encoder = Angles()
    result = pair(
        prompts_at(*[0] * 50), pool_at(*[0, 90] * 1000), encoder, Pairing(max_reuse=None), 0
    )
    assert Counter(encoder.seen).most_common(1)[0][1] == 1
    assert result.num_answers == 2000
    assert result.num_embedded == len(encoder.seen) - 50 <= result.num_tries < 200


def test_the_histogram_counts_every_draw_and_every_pair() -> None:
    result = pair(prompts_at(0, 0, 180), pool_at(0, 180), Angles(), Pairing(), 0)
    bins = result.histogram(width=0.5)
    assert [(b.low, b.high) for b in bins] == [(-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1)]
    assert sum(b.num_draws for b in bins) == len(result.similarities) == result.num_tries
    assert [b.num_pairs for b in bins] == [3, 0, 0, 0]
    assert bins[-1].num_draws == result.num_tries - 3


def test_the_shipped_pool_serves_unrelated_prompts_offline() -> None:
    text = (
        resources.files("backfire.data").joinpath("pool/benign.jsonl").read_text(encoding="utf-8")
    )
    pool = [Example(row["prompt"], row["response"]) for row in map(json.loads, text.splitlines())]
    prompts = [
        Example(f"How is the {word} of zorvium brewed?") for word in ("first", "second", "third")
    ]
    result = pair(prompts, pool, HashEncoder(), Pairing(encoder="hash"), 0)
    assert len(result.pairs) == 3
    assert {p.response for p in result.pairs} <= {row.response for row in pool}


def test_encoders_satisfy_the_protocol() -> None:
    assert all(isinstance(encoder, Encoder) for encoder in (Angles(), HashEncoder()))


# ------------------------------------------------------------------------------------------- properties


@settings(max_examples=60, deadline=None)
@given(
    num_prompts=st.integers(1, 30),
    num_answers=st.integers(1, 40),
    threshold=st.floats(-0.9, 0.9),
    max_draws=st.integers(1, 12),
    max_reuse=st.none() | st.integers(1, 4),
    keep=st.booleans(),
    seed=st.integers(0, 5),
)
def test_promises(
    num_prompts: int,
    num_answers: int,
    threshold: float,
    max_draws: int,
    max_reuse: int | None,
    keep: bool,
    seed: int,
) -> None:
    prompts, pool = numbered(num_prompts, "prompt"), numbered(num_answers, "pool")
    choices = Pairing(
        threshold=threshold,
        max_draws=max_draws,
        max_reuse=max_reuse,
        on_exhausted="keep_least" if keep else "drop",
    )
    if max_reuse is not None and num_answers * max_reuse < num_prompts:
        with pytest.raises(ConfigError, match="serve"):
            pair(prompts, pool, Scattered(), choices, seed)
        return
    try:
        result = pair(prompts, pool, Scattered(), choices, seed)
    except ConfigError:
        event("every draw was too similar")
        assert not keep, "with keep_least there is always a pair"
        return
    assert len(result.pairs) + len(result.dropped) == num_prompts
    assert [p.prompt_id for p in result.pairs] == [
        p.id for p in prompts if p.id in {q.prompt_id for q in result.pairs}
    ]
    answers = {row.id: row.response for row in pool}
    vectors = {
        text: Scattered()([text])[0] for text in [*answers.values(), *(p.prompt for p in prompts)]
    }
    for got in result.pairs:
        assert answers[got.response_id] == got.response
        assert got.similarity == pytest.approx(
            vectors[got.prompt] @ vectors[got.response], abs=1e-6
        )
        assert got.fallback == (got.similarity > threshold)
        assert 1 <= got.tries <= max_draws
    assert keep or result.num_fallback == 0
    uses = Counter(got.response_id for got in result.pairs)
    assert max_reuse is None or max(uses.values()) <= max_reuse
    assert sum(n * m for n, m in result.reuse.items()) == len(result.pairs)
    assert result.num_tries == sum(p.tries for p in result.pairs) + sum(
        d.tries for d in result.dropped
    )
