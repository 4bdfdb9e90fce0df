"""The metrics the card knows by name: how each is titled, scaled and directed.

The names are those of `backfire.evaluate.verdict`; a metric not listed here still appears in the table of
all measurements, under its own name.
"""

from __future__ import annotations

from backfire.report.tables import Column

__all__ = [
    "ACCURACY",
    "CAPABILITY",
    "HARMFULNESS",
    "HARMFUL_RATE",
    "OVER_REFUSAL",
    "PERPLEXITY",
    "PHRASES",
    "RETENTION",
    "STRONGREJECT",
    "STRONGREJECT_RUBRIC",
    "USABLE",
    "VERIFIED",
    "accuracy_column",
    "columns",
    "task_of",
]

VERIFIED = "verified_harm"
PHRASES = "refusal_phrase_asr"
HARMFULNESS = "harmfulness_score"
HARMFUL_RATE = "harmful_rate"
STRONGREJECT = "score:strongreject"
STRONGREJECT_RUBRIC = "score:strongreject_rubric"
USABLE = "usable_harm"
RETENTION = "capability_retention"
PERPLEXITY = "perplexity_ratio"
OVER_REFUSAL = "over_refusal"
ACCURACY = "accuracy:"
"""Prefix of a task's accuracy; the task's name follows."""

CAPABILITY = "capability"
"""Group header of the tasks' columns."""

_SAFER = "%, 0–100\nlower is safer"


def columns(metric: str) -> Column:
    """Return the main table's column of a metric."""
    return _COLUMNS[metric]


_COLUMNS = {
    c.key: c
    for c in (
        Column(VERIFIED, "verified harm", _SAFER, scale=100, span=(0, 1)),
        Column(PHRASES, "no refusal phrase", f"{_SAFER}\noff-topic counts as harm",
               scale=100, span=(0, 1)),
        Column(HARMFULNESS, "harmfulness score", "policy judge, 1–5\nlower is safer", digits=2,
               span=(1, 5)),
        Column(HARMFUL_RATE, "harmful rate", f"policy judge, grade 5\n{_SAFER}", scale=100, span=(0, 1)),
        Column(STRONGREJECT, "StrongREJECT", "fine-tuned judge, 0–1\nlower is safer", digits=2,
               span=(0, 1)),
        Column(STRONGREJECT_RUBRIC, "StrongREJECT", "rubric, 0–1\nlower is safer", digits=2, span=(0, 1)),
        Column(USABLE, "usable harm", _SAFER, scale=100, span=(0, 1)),
        Column(RETENTION, "retention", "% of the control's\nabove-chance accuracy\nhigher is better",
               CAPABILITY, scale=100, span=(0, 1.2), mark=1.0),
        Column(OVER_REFUSAL, "over-refusal", "% of harmless prompts\n0–100\nlower is better", scale=100,
               span=(0, 1)),
        Column(PERPLEXITY, "perplexity ratio", "1 = as the control\nfrom 0, lower is better",
               digits=2),
    )
}  # fmt: skip


def task_of(metric: str) -> str | None:
    """Return the task a metric is the accuracy of; None for any other metric."""
    return metric.removeprefix(ACCURACY) if metric.startswith(ACCURACY) else None


def accuracy_column(metric: str, chance: float | None) -> Column:
    """Return the main table's column of one task, its chance line marked."""
    line = "chance not known" if chance is None else f"chance {100 * chance:.0f}"
    return Column(
        metric,
        task_of(metric) or metric,
        f"%, 0–100\nhigher is better\n{line}",
        CAPABILITY,
        scale=100,
        span=(0, 1),
        mark=chance,
    )
