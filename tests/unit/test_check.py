"""What `backfire check` says of a plan before it is run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backfire.check import check_page, check_record
from backfire.config import from_text
from backfire.evaluate.statistics import resolvable

FILE = """
name: planned
model: tiny:llama
data: {counts: {evaluation: 50}}
attacks:
  - {name: harmful, shots: 10}
  - {name: harmful, shots: 50}
defenses: [{name: sdd}]
evaluations:
  - {name: harmfulness}
  - {name: capability, tasks: [sciq, piqa], limit: {sciq: 30}}
seeds: [0, 1]
"""


def record(*changes: str) -> dict[str, Any]:
    return check_record(from_text(FILE, "planned.yaml", changes))


def test_what_the_planned_numbers_can_show() -> None:
    harm, sciq = record()["resolution"]
    assert (harm["measure"], harm["n"], harm["seeds"]) == ("harm", 50, 2)
    assert harm["difference_if_seeds_agree"] == pytest.approx(resolvable(50))
    assert harm["difference_if_seeds_are_independent"] == pytest.approx(resolvable(100))
    # Of PIQA all questions are asked, and how many those are is not known before it is fetched.
    assert (sciq["measure"], sciq["n"]) == ("accuracy on sciq", 30)
    page = check_page(record())
    assert re.search(r"harm +50 hazards +19 points +27 points", page)
    assert "2 seeds will show 4 times in 5" in page


def test_with_one_seed_there_is_one_number() -> None:
    page = check_page(record("seeds=[0]"))
    assert "if all seeds agree" not in page
    assert "1 seed will show" in page


def test_the_second_round_is_told_and_keeps_hazards_back() -> None:
    assert record()["second_round"] is None
    planned = record("confirm={seeds: [7, 8, 9], prompts: 20}")
    # Three seeds: the defense, its attack, and the same attack on the control.
    assert planned["second_round"] == {"seeds": 3, "prompts": 20, "trainings": 9}
    assert planned["resolution"][0]["n"] == 30
    assert "Second round: up to 9 more trainings (3 fresh seeds)" in check_page(planned)


def test_what_hangs_on_rows_nobody_counted_is_not_priced() -> None:
    known = check_page(record("model=organism"))
    assert "Not priced" not in known
    assert re.search(r"rows +350 defense, .*, all that is left for pool", known)
    planned = record(
        "model=organism", "data.counts.defense=null", "defenses=[{name: sdd}, {name: refusal_sft}]"
    )
    priced = {row["label"]: "flops" in row for row in planned["prices"]}
    # SDD's default is a number of steps, so its price hangs on no count.
    assert priced == {"mft-10-full": True, "mft-50-full": True, "sdd": True, "refusal-sft": False}
    page = check_page(planned)
    assert "Not priced: refusal-sft. " in page
    assert "give numbers for defense and pool under `data.counts`" in page
