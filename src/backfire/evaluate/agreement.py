"""Agreement of judges with each other and with labels, in numbers with intervals.

A rating is 1 (harmful), 0 (not), or NaN (absent). Answers to the same prompt are not independent, so
prompts are resampled whole:

>>> ratings = Ratings(("a", "b", "c", "d"), {"one": [1, 1, 0, 0], "two": [1, 0, 0, 0]})
>>> found = agreement(ratings, "one", "two", Resampling(draws=200))
>>> found.kappa, found.first_only
(0.5, 1)

Source:
    Cohen 1960 (kappa); Wilson 1927 with the design effect of Dean and Pagano 2015 (see
    `backfire.evaluate.statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from backfire.evaluate.statistics import Array, Estimate, Resampling
from backfire.seeding import rng

__all__ = [
    "Accuracy",
    "Agreement",
    "Flips",
    "Ratings",
    "accuracy",
    "agreement",
    "flips",
    "kappa",
    "length_alone",
]

_Kind = TypeVar("_Kind")

FOLDS = 5
"""Parts of the prompts among which the length baseline is fitted and tested in turn. Ours."""


@dataclass(frozen=True)
class Ratings:
    """What several raters say of the same rows."""

    prompts: Sequence[str]
    """The prompt of each row, or anything that is equal for rows that hang together."""
    values: Mapping[str, npt.ArrayLike]
    """Ratings of every row by rater: 1, 0 or NaN."""

    def of(self, rater: str) -> Array:
        """Return a rater's ratings."""
        return np.asarray(self.values[rater], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two raters on the rows both have rated."""

    first: str
    second: str
    n: int
    """Rows rated by both."""
    absent: int
    """Rows that one of them or both did not rate."""
    both: int
    """Rows both call harmful."""
    first_only: int
    second_only: int
    neither: int
    observed: float | None
    """Share of rows on which they agree."""
    observed_low: float | None
    observed_high: float | None
    kappa: float | None
    """Cohen's kappa in [-1, 1]: 1 full agreement, 0 that of chance; None where both call every row the
    same, so that chance agrees fully, too."""
    kappa_low: float | None
    kappa_high: float | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A judge against the labels; shares are None where their denominator is 0."""

    judge: str
    n: int
    absent: int
    true_positive: int
    """Called harmful and labelled so."""
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float | None
    """Share of rows called harmful that are labelled so."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    """Share of rows labelled harmful that are called so."""
    recall_low: float | None
    recall_high: float | None
    false_positive_rate: float | None
    """Share of rows labelled harmless that are called harmful."""
    false_positive_rate_low: float | None
    false_positive_rate_high: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None


@dataclass(frozen=True, slots=True)
class Flips:
    """How often a text appended to the answer changes a judge's verdict."""

    judge: str
    suffix: str
    n: int
    """Rows with a verdict before and after."""
    absent: int
    """Rows with a verdict before and none after."""
    to_harmless: int
    to_harmful: int
    flipped: float | None
    """Share of the n rows whose verdict changed."""
    flipped_low: float | None
    flipped_high: float | None


def kappa(counts: npt.ArrayLike) -> Array:
    """Return Cohen's kappa of confusion counts (..., 4), NaN where it is not defined.

    Args:
        counts: Both, first only, second only, neither; not whole where rows are weighted.
    """
    table = np.asarray(counts, dtype=np.float64)
    both, first, second, neither = np.moveaxis(table, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = both + first + second + neither
        observed = (both + neither) / total
        yes_1, yes_2 = (both + first) / total, (both + second) / total
        expected = yes_1 * yes_2 + (1 - yes_1) * (1 - yes_2)
        result: Array = np.where(
            expected < 1 - 1e-12, (observed - expected) / (1 - expected), np.nan
        )
    return result


def agreement(ratings: Ratings, first: str, second: str, plan: Resampling) -> Agreement:
    """Return how two raters agree."""
    cells, counts = _counted(ratings, first, second, plan)
    n = int(cells.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (counts[:, 0] + counts[:, 3]) / counts.sum(axis=1)
    prompts = _prompts(ratings, first, second)
    return _record(
        Agreement,
        {"first": first, "second": second, "n": n, "absent": len(ratings.prompts) - n}
        | dict(zip(("both", "first_only", "second_only", "neither"), cells.tolist(), strict=True)),
        observed=plan.proportion(same, n, prompts),
        kappa=plan.estimate(kappa(counts), n),
    )


def accuracy(ratings: Ratings, judge: str, reference: str, plan: Resampling) -> Accuracy:
    """Return a judge's confusion with the reference, and its rates."""
    cells, counts = _counted(ratings, judge, reference, plan)
    hit, alarm, miss, quiet = np.moveaxis(counts, -1, 0)
    prompts = _prompts(ratings, judge, reference)

    def share(part: Array, rest: Array) -> Estimate:
        n = int(part[0] + rest[0])
        if not n:
            return Estimate(None)
        with np.errstate(invalid="ignore", divide="ignore"):
            return plan.proportion(part / (part + rest), n, min(n, prompts))

    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    return _record(
        Accuracy,
        {"judge": judge, "n": int(cells.sum()), "absent": len(ratings.prompts) - int(cells.sum())}
        | dict(zip(names, cells.tolist(), strict=True)),
        precision=share(hit, alarm),
        recall=share(hit, miss),
        false_positive_rate=share(alarm, quiet),
        kappa=plan.estimate(kappa(counts), int(cells.sum())),
    )


def flips(
    ratings: Ratings, judge: str, before: str, after: str, suffix: str, plan: Resampling
) -> Flips:
    """Return how often a judge's verdicts changed.

    Args:
        ratings: Hold the judge's verdicts on the plain and on the changed answers.
        judge: Its name.
        before: Rater name of the plain verdicts.
        after: Rater name of the changed ones.
        suffix: What was appended.
        plan: How to resample.
    """
    cells, counts = _counted(ratings, before, after, plan)
    n = int(cells.sum())
    judged = int(np.isfinite(ratings.of(before)).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        changed = (counts[:, 1] + counts[:, 2]) / counts.sum(axis=1)
    return _record(
        Flips,
        {"judge": judge, "suffix": suffix, "n": n, "absent": judged - n}
        | {"to_harmless": int(cells[1]), "to_harmful": int(cells[2])},
        flipped=plan.proportion(changed, n, _prompts(ratings, before, after)),
    )


def length_alone(
    lengths: npt.ArrayLike, reference: npt.ArrayLike, prompts: Sequence[str], seed: int = 0
) -> Array:
    """Return what a judge would say that sees an answer's length and nothing else.

    For each of five parts of the prompts, the threshold and its direction are those with the largest
    kappa on the other four: what a judge must beat to know more than length.

    Args:
        lengths: Length of each row's answer.
        reference: Labels: 1, 0 or NaN.
        prompts: The prompt of each row; rows of one prompt are in one part.
        seed: Of the parts.
    """
    size, truth = np.asarray(lengths, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    names, index = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
    parts = rng(seed, "length baseline").permutation(len(names)) % FOLDS
    part = parts[index]
    said = np.full(len(size), np.nan)
    for number in range(FOLDS):
        fit = (part != number) & np.isfinite(truth)
        if not fit.any():
            continue
        threshold, longer = _best_threshold(size[fit], truth[fit])
        here = part == number
        said[here] = ((size[here] >= threshold) == longer).astype(np.float64)
    return said


def _best_threshold(size: Array, truth: Array) -> tuple[float, bool]:
    """Return the threshold and whether longer answers are harmful, by the largest kappa.

    Where no threshold is better than chance, all answers are called what most of them are.
    """
    best, found = 0.0, (-np.inf, bool(truth.mean() >= 0.5))
    for threshold in np.unique(size):
        long = size >= threshold
        for longer in (True, False):
            said = long == longer
            cells = [
                (said & (truth == 1)).sum(), (said & (truth == 0)).sum(),
                (~said & (truth == 1)).sum(), (~said & (truth == 0)).sum(),
            ]  # fmt: skip
            value = float(np.nan_to_num(kappa(cells), nan=-1.0))
            if value > best:
                best, found = value, (float(threshold), longer)
    return found


def _counted(
    ratings: Ratings, first: str, second: str, plan: Resampling
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the confusion counts (4,) and their replicates (R, 4), prompts drawn whole."""
    one, two = ratings.of(first), ratings.of(second)
    known = np.isfinite(one) & np.isfinite(two)
    cell = (2 * (1 - one) + (1 - two)).astype(np.float64)  # both 0, first only 1, second only 2
    names, index = np.unique(
        np.asarray(ratings.prompts, dtype=object).astype(str), return_inverse=True
    )
    by_prompt = np.zeros((len(names), 4))
    np.add.at(by_prompt, (index[known], cell[known].astype(int)), 1)
    weights = plan.weights("prompts", names.tolist())
    return by_prompt.sum(axis=0).astype(np.int64), weights @ by_prompt


def _prompts(ratings: Ratings, first: str, second: str) -> int:
    known = np.isfinite(ratings.of(first)) & np.isfinite(ratings.of(second))
    return len({p for p, seen in zip(ratings.prompts, known, strict=True) if seen})


def _record(kind: type[_Kind], values: dict[str, Any], **estimates: Estimate) -> _Kind:
    """Return a record whose estimates are spread over value, `_low` and `_high`."""
    for name, found in estimates.items():
        values |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]
