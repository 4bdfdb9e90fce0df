"""The Bradley-Terry view of malicious fine-tuning, on paper.

Fine-tuning on a harmful answer y_c can be read as making it preferred to the model's own answer y_o:

    P(y_c > y_o | x) = r_c / (r_c + r_o) = sigmoid(log r_c - log r_o),   r = pi_after / pi_before.

The objective asks only that the *difference* of the log-ratios grows; it can grow with r_o fixed or
even rising. What one step of supervised fine-tuning does to y_o, which its loss never mentions, is
answered here for a softmax over tokens at the first position where the two answers part.

>>> bool(rises([0.01, 0.01, 0.98], chosen=0, other=1))     # a third token gives way to both
True

Source: the preference probability is the SDD paper's (arXiv 2507.21182, Eqs. 4 to 7, as reported);
the softmax step is our own analysis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backfire.errors import ConfigError

__all__ = [
    "first_order_change",
    "log_probability_change",
    "preference",
    "rises",
    "softmax_step",
]

Array = NDArray[np.float64]


def preference(log_ratio_chosen: ArrayLike, log_ratio_other: ArrayLike) -> Array:
    """Return P(y_c > y_o | x) from log(pi_after / pi_before) of both answers, in nats.

    1/2 before any step; equal shifts of both ratios leave it as it is.
    """
    from scipy.special import expit

    return np.asarray(expit(np.subtract(log_ratio_chosen, log_ratio_other)))


def softmax_step(probabilities: ArrayLike, chosen: int, rate: float) -> Array:
    """Return the distribution after one gradient step of -log p_chosen in the logits.

    Args:
        probabilities: Shape (V,), positive, summing to 1.
        chosen: Index of the token that is trained on.
        rate: Step size; the logits move by rate (one_hot(chosen) - p).

    Raises:
        ConfigError: the probabilities are no distribution, or the index is out of range.
    """
    p = _distribution(probabilities, chosen)
    logits = np.log(p) - rate * p
    logits[chosen] += rate
    logits -= logits.max()
    result = np.exp(logits)
    return np.asarray(result / result.sum())


def log_probability_change(probabilities: ArrayLike, chosen: int, other: int, rate: float) -> float:
    """Return the exact change of log p_other, in nats, under `softmax_step`."""
    p = _distribution(probabilities, chosen, other)
    return float(np.log(softmax_step(p, chosen, rate)[other]) - np.log(p[other]))


def first_order_change(probabilities: ArrayLike, chosen: int, other: int, rate: float) -> float:
    """Return the same to first order: -rate (p_other + p_chosen - sum of p squared).

    For the chosen token itself: rate (1 - 2 p_chosen + sum of p squared).
    """
    p = _distribution(probabilities, chosen, other)
    return float(rate * ((chosen == other) - p[other] - p[chosen] + p @ p))


def rises(probabilities: ArrayLike, chosen: int, other: int) -> bool:
    """Return whether a small step on `chosen` raises log p_other as well.

    It does exactly when sum of p squared > p_other + p_chosen: some third token is so likely that
    the mass it gives up is shared out. It never does when `other` is the likeliest token.
    """
    return first_order_change(probabilities, chosen, other, 1.0) > 0


def _distribution(probabilities: ArrayLike, *indices: int) -> Array:
    p = np.asarray(probabilities, float)
    if p.ndim != 1 or not (p > 0).all() or abs(p.sum() - 1) > 1e-9:
        raise ConfigError(
            f"reading token probabilities: met {probabilities!r}; they must be one row of numbers "
            "above 0 that sum to 1"
        )
    for index in indices:
        if not 0 <= index < len(p):
            raise ConfigError(
                f"reading a token's index: met {index}; there are {len(p)} tokens, from 0"
            )
    return p
