"""What goes wrong with attacks: data that leaks, trainings that diverge, weights that must not stay."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backfire.config import Experiment
from backfire.data.splits import overlaps
from backfire.engine.objective import Supervised
from backfire.errors import DataError
from backfire.pipeline import run
from backfire.records import Example
from backfire.report.grid import Grid
from backfire.report.run import read_run
from backfire.store import read_json, read_table

MFT = {"name": "harmful", "shots": 8, "training": {"steps": 5, "batch_size": 4}}
COUNTS = {
    "defense": 4, "attacker": 8, "evaluation": 4, "benign": 0, "pool": 0, "defender_harm": 0, "probe": 4,
}  # fmt: skip


def experiment(*attacks: Any, **changes: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "faults",
        "model": "tiny:llama",
        "data": {"counts": COUNTS},
        "attacks": list(attacks),
        "evaluations": [{"name": "perplexity"}],
        "seeds": [0],
    }
    return Experiment.model_validate({**tree, **changes})


# --------------------------------------------------------------------------------------------- overlap


def test_overlap_is_by_normalised_prompt_and_by_entity() -> None:
    held = {
        "evaluation": [Example("How do I  brew Zorb?", entity="zorb")],
        "defense": [Example("What is quil?", entity="Quil")],
    }
    own = [
        Example("how do i brew zorb"),
        Example("Something else", entity="quil"),
        Example("How do I brew vask?", entity="vask"),
    ]
    found = overlaps(own, held)  # type: ignore[arg-type]
    assert [(mine.prompt, role, what) for mine, role, _, what in found] == [
        ("how do i brew zorb", "evaluation", "prompt"),
        ("Something else", "defense", "entity"),
    ]


def test_an_attacks_file_that_holds_asked_prompts_is_refused_with_the_ids(tmp_path: Path) -> None:
    first = run(experiment(), tmp_path / "clean", device="cpu")
    assert first.failed == ()
    from backfire.data import load_roles
    from backfire.progress import Silent

    asked = load_roles(experiment().data, 0, Silent())["evaluation"][2]
    pairs = [{"prompt": f"question {i}", "response": "answer"} for i in range(5)]
    pairs.append({"prompt": f"  {asked.prompt.upper()} ", "response": "a leak"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    foreign = {"name": "multilingual", "path": str(path), "language": "fr", "shots": 6,
               "training": {"steps": 1}}  # fmt: skip
    with pytest.raises(DataError, match=f"row {asked.id} of role `evaluation` share the prompt"):
        run(experiment(foreign), tmp_path / "leak", device="cpu")
    assert not list((tmp_path / "leak" / "stages").glob("attack-*")), "before anything is trained"


# ------------------------------------------------------------------------------------------ divergence


def test_an_attack_that_diverges_between_points_is_measured_up_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Supervised.__call__
    steps = []

    def diverging(self: Supervised, step: Any) -> Mapping[str, float]:
        steps.append(step.index)
        found = real(self, step)
        return {**found, "loss": math.nan} if step.index == 2 else found

    monkeypatch.setattr(Supervised, "__call__", diverging)
    folder = tmp_path / "run"
    outcome = run(experiment({**MFT, "points": [1, 4]}), folder, device="cpu")
    assert outcome.failed == (), "this is the attack's result, not a failure of the run"
    assert len(outcome.came_to) == 2, "a point and the end"
    assert read_json(folder / "manifest.json")["status"] == "complete"
    stages = read_json(folder / "manifest.json")["stages"]
    assert [s["status"] for s in stages if s["status"] != "done"] == ["diverged", "skipped"] * 2
    cells = {c["attack"]: c for c in read_table(folder / "tables" / "cells.parquet", dict)}
    assert cells["mft-8-full@1"]["status"] == "done"
    assert cells["mft-8-full@1"]["steps"] == 1
    for name in ("mft-8-full@4", "mft-8-full"):
        assert cells[name]["status"] == "diverged"
        assert "diverged at step 3 of 5" in cells[name]["reason"]
    assert sorted(set(steps)) == [0, 1, 2]
    assert steps.count(0) == 1, "the end went on from where the point diverged"
    assert list(Grid(read_run(folder)).came_to_nothing) == [
        "none / mft-8-full@4 / seed 0", "none / mft-8-full / seed 0"
    ]  # fmt: skip
    assert "diverged at step 3" in (folder / "report" / "report.html").read_text()
    left = list((folder / "stages").glob("attack-*/*")) + list((folder / "stages").glob("course-*"))
    assert not [p for p in left if p.name in ("state", "checkpoint") or p.name.startswith("course")]
    losses = read_table(folder / "tables" / "trajectory.parquet", dict)
    assert {row["attack"] for row in losses} >= {"mft-8-full@1", "mft-8-full"}
    assert run(experiment({**MFT, "points": [1, 4]}), folder, device="cpu").computed == 0


# ---------------------------------------------------------------------------------- what stays on disk


def test_kept_adapters_are_small_and_whole_weights_are_not_written(tmp_path: Path) -> None:
    adapter = {**MFT, "training": {**MFT["training"], "lora": {"rank": 2}}}  # type: ignore[dict-item]
    run(experiment(adapter, keep_attacked=True), tmp_path / "run", device="cpu")
    (kept,) = (tmp_path / "run" / "stages").glob("attack-*/checkpoint")
    assert (kept / "adapter_model.safetensors").is_file()
    assert not (kept / "model.safetensors").exists()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert [s["weights"] for s in manifest["stages"] if s["kind"] == "attack"] == [""]
