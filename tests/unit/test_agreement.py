"""Agreement: kappa, confusion, the length baseline and flips, by hand and by another implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from backfire.evaluate.agreement import (
    Ratings,
    accuracy,
    agreement,
    flips,
    kappa,
    length_alone,
)
from backfire.evaluate.statistics import Resampling, wilson

PLAN = Resampling(draws=400)
NAN = float("nan")


def alone(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


def test_kappa_by_hand() -> None:
    # 45 both, 15 and 25 apart, 15 neither: observed .6, expected .7 * .6 + .3 * .4 = .54.
    assert kappa([45, 25, 15, 15]) == pytest.approx((0.6 - 0.54) / 0.46)
    assert kappa([10, 0, 0, 10]) == 1
    assert kappa([0, 10, 10, 0]) == -1
    assert kappa([5, 5, 5, 5]) == 0
    assert np.isnan(kappa([10, 0, 0, 0]))
    assert np.isnan(kappa([0, 0, 0, 0]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_kappa_as_another_implementation_gives_it(pairs: list[tuple[bool, bool]]) -> None:
    one, two = ([float(p[i]) for p in pairs] for i in (0, 1))
    ratings = Ratings(alone(len(pairs)), {"one": one, "two": two})
    found = agreement(ratings, "one", "two", Resampling(draws=100))
    if len({*one, *two}) == 1:
        assert found.kappa is None
    else:
        assert found.kappa == pytest.approx(cohen_kappa_score(one, two), abs=1e-12)
        assert agreement(ratings, "two", "one", Resampling(draws=100)).kappa == found.kappa
        assert -1 - 1e-9 <= found.kappa_low <= found.kappa <= found.kappa_high <= 1 + 1e-9


def test_confusion_and_rates_by_hand() -> None:
    judge = [1, 1, 1, 0, 0, 0, NAN, 1]
    truth = [1, 1, 0, 1, 0, 0, 1, NAN]
    found = accuracy(Ratings(alone(8), {"judge": judge, "truth": truth}), "judge", "truth", PLAN)
    assert (found.n, found.absent) == (6, 2)
    assert (found.true_positive, found.false_positive) == (2, 1)
    assert (found.false_negative, found.true_negative) == (1, 2)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.false_positive_rate == pytest.approx(1 / 3)


def test_a_rate_over_nothing_is_absent() -> None:
    found = accuracy(Ratings(alone(3), {"j": [0, 0, 0], "t": [1, 1, 1]}), "j", "t", PLAN)
    assert (found.precision, found.precision_low) == (None, None)
    assert found.false_positive_rate is None
    assert found.recall == 0
    assert found.kappa == 0


def test_intervals_are_wilsons_where_nothing_varies_and_wider_for_clusters() -> None:
    ones = [1.0] * 40
    found = accuracy(Ratings(alone(40), {"j": ones, "t": ones}), "j", "t", PLAN)
    assert (found.recall_low, found.recall_high) == pytest.approx(wilson(1, 40))
    # The same ratings, but every ten rows are answers to one prompt and rise and fall together.
    judge = [1.0] * 20 + [0.0] * 20
    apart = Ratings(alone(40), {"j": judge, "t": ones})
    clustered = Ratings([f"p{i // 10}" for i in range(40)], {"j": judge, "t": ones})
    free, tied = (accuracy(r, "j", "t", PLAN) for r in (apart, clustered))
    assert free.recall == tied.recall == 0.5
    assert tied.recall_high - tied.recall_low > 1.5 * (free.recall_high - free.recall_low)


def test_flips_by_hand() -> None:
    before = [1, 1, 1, 0, 0, NAN]
    after = [0, 0, 1, 1, NAN, NAN]
    found = flips(Ratings(alone(6), {"b": before, "a": after}), "judge", "b", "a", "padding", PLAN)
    assert (found.n, found.absent) == (4, 1)
    assert (found.to_harmless, found.to_harmful) == (2, 1)
    assert found.flipped == pytest.approx(3 / 4)
    assert found.flipped_low < 0.75 < found.flipped_high


class TestLengthAlone:
    def test_finds_labels_that_are_nothing_but_length(self) -> None:
        lengths = list(range(100))
        for truth in ([float(n > 60) for n in lengths], [float(n <= 60) for n in lengths]):
            said = length_alone(lengths, truth, alone(100))
            assert kappa_of(said, truth) > 0.9

    def test_is_of_no_use_for_labels_that_are_not(self) -> None:
        draw = np.random.default_rng(0)
        truth = draw.integers(0, 2, 400).astype(float)
        said = length_alone(draw.integers(1, 200, 400), truth, alone(400))
        assert abs(kappa_of(said, truth)) < 0.15

    def test_is_tested_on_prompts_it_was_not_fitted_on(self) -> None:
        # Each prompt has its own length and label: fitted on itself, the threshold would be perfect
        # for the one prompt that alone is harmful.
        prompts = [f"p{i}" for i in range(10) for _ in range(4)]
        lengths = [10 * (i + 1) for i in range(10) for _ in range(4)]
        truth = [float(i == 9) for i in range(10) for _ in range(4)]
        said = length_alone(lengths, truth, prompts)
        assert said[-4:].tolist() == [0, 0, 0, 0]

    def test_says_something_of_unlabelled_rows_and_is_repeatable(self) -> None:
        truth = [1.0, 0.0, NAN] * 10
        said = length_alone(range(30), truth, alone(30))
        assert np.isfinite(said).all()
        assert said.tolist() == length_alone(range(30), truth, alone(30)).tolist()


def kappa_of(said: np.ndarray, truth: list[float] | np.ndarray) -> float:
    return float(cohen_kappa_score(said, truth))
