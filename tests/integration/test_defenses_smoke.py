"""Every defense goes from training to report, and the report says what data each one saw."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backfire.cli import app
from backfire.config import load
from backfire.store import read_json, read_table
from small_methods import TRAINED_DEFENSES, name_of

FILE = Path(__file__).parents[2] / "experiments" / "defenses-smoke.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "defenses"
    # One quick measurement in place of the file's own, which other tests make.
    measured = "evaluations=[{name: perplexity, num_texts: 2, max_tokens: 32}]"
    words = ["run", str(FILE), "--set", measured, "--out", str(folder), "--progress", "none"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return folder


def test_the_file_has_every_defense_that_trains() -> None:
    named = {defense.name for defense in load(FILE).active_defenses}
    assert named - {"none"} == {name_of(member) for member in TRAINED_DEFENSES}


def test_every_defense_is_trained_attacked_and_measured(run: Path) -> None:
    assert read_json(run / "manifest.json")["status"] == "complete"
    effects = read_table(run / "tables" / "effects.parquet", dict)
    trained = {row["defense"]: row for row in effects if row["attack"] == "none"}
    defenses = [d for d in load(FILE).active_defenses if d.name != "none"]
    for defense in defenses:
        row = trained[defense.label]
        assert (row["forwards"], row["backwards"]) == defense.passes(defense.training.steps)
        assert row["share_changed"] > 0
    cells = read_table(run / "tables" / "cells.parquet", dict)
    assert {(c["defense"], c["attack"], c["status"]) for c in cells} == {
        (label, attack, "done")
        for label in ("none", *(d.label for d in defenses))
        for attack in ("none", "mft-8-full")
    }


def test_the_report_says_what_data_each_defense_saw(run: Path) -> None:
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    saw = {
        "booster": "14 harmful prompts, 14 harmful answers",
        "repnoise": "14 harmful answers",
        "tar": "14 harmful answers, 40 benign pairs",
        "seam": "14 harmful answers, 40 benign pairs",
        "ctrap": "14 harmful prompts, 14 harmful answers, 14 benign pairs",
    }
    for label, rows in saw.items():
        assert re.search(rf"\b{label} defense {label} [^;]*? {rows} \w", text), label
    warned = re.search(r"Unequal data: (.*?) trained on harmful answers, (.*?) did not", text)
    assert warned is not None
    assert "booster" in warned[1]
    assert "vaccine" in warned[2].split()
