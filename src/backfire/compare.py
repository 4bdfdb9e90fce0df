"""Two runs, or two defenses, side by side: paired differences, with intervals, of what both have measured.

Only like is compared with like: the same evaluation settings, judges of the same version, the same
prompts and questions. Anything else is refused, because the difference would be the instrument's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backfire.errors import ConfigError
from backfire.evaluate.statistics import Resampling, over_seeds, per_seed
from backfire.report.run import Run, read_run
from backfire.text import table

__all__ = ["compare_page", "compare_runs"]

_LOSS = "nats a token"

_Series = Mapping[tuple[str, str, str], Mapping[tuple[int, str], float]]
"""Values by seed and item, for each defense, attack and metric; NaN where a value is absent."""


def compare_runs(
    first: Path, second: Path | None = None, defenses: tuple[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return second minus first for every metric and cell that both runs have.

    Args:
        first: A run folder.
        second: Another; None: the same, for two of its defenses.
        defenses: A defense of the first and one of the second, to be compared with each other; None: each
            with its namesake.

    Returns:
        One row for each: defense, attack, metric, both values, the difference and its 95 % interval
        (paired bootstrap over items and seeds), the pairs behind it.

    Raises:
        CheckpointError: when a folder is no run folder.
        ConfigError: when the runs measured differently, have no cell in common, or lack a defense; or when
            there is only one run and no `defenses`.
    """
    if second is None:
        if defenses is None:
            raise ConfigError(
                f"comparing {first}: there is nothing to compare it with; give a second run folder, or two "
                "of its defenses"
            )
        second = first
    runs = read_run(first), read_run(second)
    _refuse_other_instruments(*runs)
    one, two = (_series(run) for run in runs)
    if defenses:
        both = " to ".join(defenses)
        one, two = (
            _renamed(series, wanted, both, folder)
            for series, wanted, folder in zip((one, two), defenses, (first, second), strict=True)
        )
    shared = [key for key in one if key in two]
    if not shared:
        raise ConfigError(
            f"comparing {first} with {second}: no defense and attack of one is in the other, so there "
            "is nothing to pair; give their counterparts the same labels"
        )
    return [_difference(key, one[key], two[key]) for key in shared]


def _renamed(series: _Series, wanted: str, name: str, folder: Path) -> _Series:
    """Return the series of one defense under a name it shares with another."""
    known = sorted({defense for defense, _, _ in series})
    if wanted not in known:
        raise ConfigError(
            f"comparing two defenses: {folder} has measured no {wanted!r}, only {', '.join(known)}; name "
            "one of these"
        )
    return {
        (name, attack, metric): values
        for (defense, attack, metric), values in series.items()
        if defense == wanted
    }


def compare_page(rows: list[dict[str, Any]]) -> str:
    """Return the differences as a table."""
    header = [
        "defense",
        "attack",
        "metric",
        "first",
        "second",
        "difference",
        "95 % interval",
        "pairs",
    ]
    return table(
        header,
        [
            [r["defense"], r["attack"], r["metric"], r["first"], r["second"],
             # A difference that is nothing but rounding shows as 0.
             r["difference"] if r["difference"] is None else round(r["difference"], 9),
             f"[{r['low']:.3g}, {r['high']:.3g}]" if r["low"] is not None else "-", r["pairs"]]
            for r in rows
        ],
    )  # fmt: skip


def _refuse_other_instruments(first: Run, second: Run) -> None:
    settings = [
        {e["name"]: e for e in run.manifest["settings"]["evaluations"]} for run in (first, second)
    ]
    problems = []
    for name in settings[0].keys() & settings[1].keys():
        one, two = settings[0][name], settings[1][name]
        other = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
        if other:
            problems.append(f"`{name}` was measured with other settings: {', '.join(other)}")
    judges = [
        {r["judge"]: r["judge_version"] for r in run.rows("verdicts")} for run in (first, second)
    ]
    tasks = [
        {
            r["task"]: (r["task_version"], r["harness_version"], r["split"])
            for r in run.rows("tasks")
        }
        for run in (first, second)
    ]
    problems += [
        f"the task {name!r} is {' '.join(tasks[0][name])} in one, {' '.join(tasks[1][name])} in the other"
        for name in sorted(tasks[0].keys() & tasks[1].keys())
        if tasks[0][name] != tasks[1][name]
    ]
    problems += [
        f"the judge {name!r} has version {judges[0][name]!r} in one and {judges[1][name]!r} in the other"
        for name in sorted(judges[0].keys() & judges[1].keys())
        if judges[0][name] != judges[1][name]
    ]
    if problems:
        listed = "\n".join(f"  {line}" for line in problems)
        raise ConfigError(
            f"comparing {first.folder} with {second.folder}: their numbers are not comparable\n{listed}\n"
            "run one of them again with the other's evaluations"
        )


def _series(run: Run) -> _Series:
    found: dict[tuple[str, str, str], dict[tuple[int, str], float]] = defaultdict(dict)

    def put(row: Any, metric: str, item: str, value: float) -> None:
        found[row["defense"], row["attack"], metric][row["seed"], item] = value

    for row in run.rows("verdicts"):
        harm = np.nan if row["harmful"] is None else float(row["harmful"])
        put(row, f"harm by {row['judge']}", row["prompt_id"], harm)
    for row in run.rows("answers"):
        put(row, f"accuracy on {row['task']}", row["item"], float(row["choice"] == row["gold"]))
    for row in run.rows("losses"):
        put(row, _LOSS, row["id"], row["nll"] / row["tokens"])
    return found


def _difference(
    key: tuple[str, str, str],
    one: Mapping[tuple[int, str], float],
    two: Mapping[tuple[int, str], float],
) -> dict[str, Any]:
    defense, attack, metric = key
    items = [sorted({item for _, item in series}) for series in (one, two)]
    if items[0] != items[1]:
        both = len(set(items[0]) & set(items[1]))
        raise ConfigError(
            f"comparing {metric} of {defense}/{attack}: the runs asked other questions "
            f"({len(items[0])} and {len(items[1])}, {both} in common); run one again with the other's "
            "data and limits"
        )
    seeds = sorted({seed for seed, _ in one} & {seed for seed, _ in two})
    result = {"defense": defense, "attack": attack, "metric": metric}
    if not seeds:
        return (
            result | dict.fromkeys(("first", "second", "difference", "low", "high")) | {"pairs": 0}
        )
    plan = Resampling()
    weights = plan.weights("items", items[0])
    values = [
        np.array([[series.get((seed, item), np.nan) for item in items[0]] for seed in seeds])
        for series in (one, two)
    ]
    # A pair counts only where both have a value.
    values = [np.where(np.isfinite(values[1 - i]), values[i], np.nan) for i in (0, 1)]
    pairs = int(np.isfinite(values[0]).sum())
    drawn = plan.seed_weights(seeds)
    first, second = (over_seeds(per_seed(v, weights), drawn) for v in values)
    if metric == _LOSS:
        ends = [plan.estimate(v, pairs) for v in (second, first)]
        gap = plan.estimate(second - first, pairs)
    else:
        ends = [plan.proportion(v, pairs, len(items[0])) for v in (second, first)]
        gap = plan.difference(ends[0], ends[1], second - first, pairs)
    return result | {
        "first": ends[1].value,
        "second": ends[0].value,
        "difference": gap.value,
        "low": gap.low,
        "high": gap.high,
        "pairs": pairs,
    }
