"""Every attack goes from training to report, points and sequences among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire.cli import app
from backfire.config import Experiment, load
from backfire.records import BUDGETS
from backfire.store import read_json, read_table
from small_methods import ATTACKS, name_of

FILE = Path(__file__).parents[2] / "experiments" / "attacks-smoke.yaml"
NEED_A_FILE = {"multilingual", "merge"}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return load(FILE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "attacks"
    words = ["run", str(FILE), "--out", str(folder), "--progress", "none", "--device", "cpu"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return folder


def test_the_file_has_every_attack_that_needs_nothing_else(experiment: Experiment) -> None:
    named = {part.name for course in experiment.attack_courses for part in course.parts}
    named |= {attack.name for attack in experiment.active_attacks}
    assert named == {name_of(member) for member in ATTACKS} - {"none"} - NEED_A_FILE


def test_every_cell_is_measured_and_its_budget_known(run: Path, experiment: Experiment) -> None:
    assert read_json(run / "manifest.json")["status"] == "complete"
    cells = {c["attack"]: c for c in read_table(run / "tables" / "cells.parquet", dict)}
    assert set(cells) == {cell.attack for cell in experiment.cells}
    assert cells.pop("refusal-direction")["status"] == "found nothing"
    assert {cell["status"] for cell in cells.values()} == {"done"}
    for label, cell in cells.items():
        known = [cell[unit] is not None for unit in BUDGETS]
        assert all(known) if label != "none" else not any(known), label
    parts = cells["unlearn-mft-bft-prefill"]
    assert parts["steps"] == 1 + 2 + 2
    assert parts["steps"] - cells["unlearn-mft-bft-prefill@1"]["steps"] == 1
    assert cells["mft-8-full@1"]["tokens"] < cells["mft-8-full@2"]["tokens"]
    for free in ("prefill", "asked-system"):
        assert (cells[free]["steps"], cells[free]["flops"]) == (0, 0)
    losses = read_table(run / "tables" / "losses.parquet", dict)
    assert {row["attack"] for row in losses} == set(cells)


def test_nothing_that_an_attack_made_stays(run: Path) -> None:
    left = [*(run / "stages").glob("attack-*/checkpoint"), *(run / "stages").glob("attack-*/state")]
    assert not [path for path in left if any(path.iterdir())]
    assert not list((run / "stages").glob("course-*"))


def test_the_report_says_what_was_and_was_not_tried(run: Path) -> None:
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "harmful fine-tuning in another language" in page
    assert "What an attacker gets for a budget" in page
