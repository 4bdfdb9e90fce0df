"""Preference probabilities and the softmax step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backfire.errors import ConfigError
from backfire.theory.bradley_terry import (
    first_order_change,
    log_probability_change,
    preference,
    rises,
    softmax_step,
)

ratios = st.floats(-30, 30)


@given(ratios, ratios, ratios)
def test_preference_is_the_ratio_of_ratios(chosen: float, other: float, shift: float) -> None:
    value = float(preference(chosen, other))
    direct = math.exp(chosen) / (math.exp(chosen) + math.exp(other))
    assert value == pytest.approx(direct, abs=1e-9)
    assert float(preference(chosen + shift, other + shift)) == pytest.approx(value, abs=1e-9)
    assert value + float(preference(other, chosen)) == pytest.approx(1.0)


def test_before_any_step_neither_is_preferred() -> None:
    assert preference(np.zeros(3), 0.0).tolist() == [0.5, 0.5, 0.5]


def test_preference_grows_with_the_other_answer_rising() -> None:
    """Caveat (i): both answers may become likelier; only the difference counts."""
    assert float(preference(3.0, 1.0)) > float(preference(0.5, 0.0)) > 0.5


def distributions(draw: st.DrawFn) -> np.ndarray:
    logits = draw(st.lists(st.floats(-6, 6), min_size=3, max_size=8))
    p = np.exp(np.array(logits) - max(logits))
    return p / p.sum()


@given(st.composite(distributions)(), st.data())
def test_the_first_order_formula_is_the_derivative(p: np.ndarray, data: st.DataObject) -> None:
    chosen, other = (data.draw(st.integers(0, len(p) - 1)) for _ in range(2))
    rate = 1e-4
    exact = log_probability_change(p, chosen, other, rate)
    assert exact == pytest.approx(first_order_change(p, chosen, other, rate), abs=10 * rate**2)


@given(st.composite(distributions)(), st.data())
def test_the_likeliest_answer_always_falls(p: np.ndarray, data: st.DataObject) -> None:
    chosen, other = data.draw(st.integers(0, len(p) - 1)), int(p.argmax())
    if chosen != other:
        assert not rises(p, chosen, other)
        assert log_probability_change(p, chosen, other, 0.01) < 0


def test_an_unlikely_answer_may_rise() -> None:
    """p = (.01, .01, .98): the sum of squares is .9606, above .02."""
    p = [0.01, 0.01, 0.98]
    assert rises(p, 0, 1)
    assert first_order_change(p, 0, 1, 0.1) == pytest.approx(0.1 * (0.9606 - 0.02))
    assert log_probability_change(p, 0, 1, 0.1) > 0


def test_a_step_by_hand() -> None:
    """From (1/2, 1/2), rate 1: logits move by (+1/2, -1/2), so p becomes sigmoid(1)."""
    assert softmax_step([0.5, 0.5], 0, 1.0).tolist() == pytest.approx([0.7310585786, 0.2689414214])


@pytest.mark.parametrize(
    ("p", "chosen", "message"),
    [([0.5, 0.6], 0, "sum to 1"), ([1.0, 0.0], 0, "above 0"), ([0.5, 0.5], 2, "2 tokens")],
)
def test_wrong_distributions_are_named(p: list[float], chosen: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        softmax_step(p, chosen, 0.1)
