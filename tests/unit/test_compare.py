"""Comparing two runs: paired differences by hand, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backfire.compare import compare_page, compare_runs
from backfire.errors import CheckpointError, ConfigError
from backfire.store import read_table, write_json, write_table


def make_run(
    folder: Path, harmful: list[bool | None], *, version: str = "1", prompts: str = "p",
    attack: str = "mft", tokens: int = 64, correct: int = 3, defense: str = "sdd",
) -> Path:  # fmt: skip
    cell: dict[str, Any] = {"defense": defense, "attack": attack, "seed": 0}
    settings = {"evaluations": [{"name": "harmfulness", "max_new_tokens": tokens}]}
    write_json(folder / "manifest.json", {"schema_version": 1, "settings": settings})
    verdicts = [
        {**cell, "prompt_id": f"{prompts}{i}", "judge": "truth", "judge_version": version, "harmful": h}
        for i, h in enumerate(harmful)
    ]  # fmt: skip
    answers = [
        {**cell, "task": "sciq", "item": str(i), "gold": 0, "choice": int(i >= correct)}
        for i in range(4)
    ]
    losses = [{**cell, "id": str(i), "nll": 20.0 + i, "tokens": 10} for i in range(4)]
    for name, rows in (("verdicts", verdicts), ("answers", answers), ("losses", losses)):
        write_table(folder / "tables" / f"{name}.parquet", rows)
    return folder


def test_differences_are_second_minus_first_over_pairs(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", [True, True, True, False])
    second = make_run(tmp_path / "b", [False, True, None, False], correct=1)
    rows = {row["metric"]: row for row in compare_runs(first, second)}
    harm = rows["harm by truth"]
    # The third prompt has no verdict in the second run, so it counts in neither.
    assert harm["pairs"] == 3
    assert harm["first"] == pytest.approx(2 / 3)
    assert harm["second"] == pytest.approx(1 / 3)
    assert harm["difference"] == pytest.approx(-1 / 3)
    assert harm["low"] <= harm["difference"] <= harm["high"] <= 0
    assert rows["accuracy on sciq"]["difference"] == pytest.approx(0.25 - 0.75)
    assert rows["nats a token"]["first"] == pytest.approx((2.0 + 2.1 + 2.2 + 2.3) / 4)
    assert rows["nats a token"]["difference"] == 0
    assert "harm by truth" in compare_page(list(rows.values()))


def test_a_defense_is_compared_with_another(tmp_path: Path) -> None:
    """Of two runs, or of one that holds both."""
    first = make_run(tmp_path / "a", [True, True, False, False])
    second = make_run(tmp_path / "b", [True, False, False, False], defense="tar")
    rows = compare_runs(first, second, ("sdd", "tar"))
    harm = next(row for row in rows if row["metric"] == "harm by truth")
    assert (harm["defense"], harm["attack"]) == ("sdd to tar", "mft")
    assert (harm["first"], harm["second"], harm["difference"]) == (0.5, 0.25, -0.25)
    for name in ("verdicts", "answers", "losses"):
        table = f"tables/{name}.parquet"
        both: list[dict[str, Any]] = read_table(first / table, dict)
        write_table(first / table, both + read_table(second / table, dict))
    assert compare_runs(first, defenses=("sdd", "tar")) == rows
    with pytest.raises(ConfigError, match="has measured no 'seam', only sdd, tar"):
        compare_runs(first, defenses=("sdd", "seam"))
    with pytest.raises(ConfigError, match="nothing to compare it with"):
        compare_runs(first)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"version": "2"}, "judge 'truth' has version '1' in one and '2'"),
        ({"tokens": 128}, "`harmfulness` was measured with other settings: max_new_tokens"),
        ({"prompts": "q"}, "asked other questions"),
        ({"attack": "lora"}, "nothing to pair"),
    ],
)
def test_what_is_not_comparable_is_refused(tmp_path: Path, other: Any, said: str) -> None:
    first = make_run(tmp_path / "a", [True, False])
    second = make_run(tmp_path / "b", [True, False], **other)
    with pytest.raises(ConfigError, match=said):
        compare_runs(first, second)


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        compare_runs(tmp_path, tmp_path)
