"""The pipeline with members that only count their calls: sharing, resuming, deleting, refusing."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from backfire import pipeline
from backfire.config import Experiment
from backfire.engine.settings import Member
from backfire.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    PrerequisiteError,
    TrainingError,
)
from backfire.pipeline import open_run, run
from backfire.plan import make_plan
from backfire.progress import Plain, Progress
from backfire.records import Checkpoint, Example, Measurement, Role
from backfire.stage import Bench, Settings
from backfire.store import read_json, read_table, write_json, write_text


class Fake(Member):
    """A transform whose weights are a text file; `STOP` decides what goes wrong."""

    name: Literal["fake"] = "fake"
    roles: ClassVar[tuple[Role, ...]] = ("defense",)
    strength: int = 1

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        (bench.workdir / "state").mkdir(exist_ok=True)
        began = bench.workdir / "state" / "began"
        resumed = began.exists()
        began.write_text("half done")
        _call(bench.label)
        weights = bench.workdir / "checkpoint" / "model.safetensors"
        write_text(weights, f"{self.strength} {bench.seed}")
        write_json(bench.workdir / "effect.json", {"method": self.label, "resumed": resumed})
        return replace(checkpoint, path=weights.parent, key="its own", base=None)


class FakeAttack(Fake):
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)


class FakeEvaluation(Settings):
    name: Literal["first", "second"] = "first"
    roles: ClassVar[tuple[Role, ...]] = ("evaluation",)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, list[Any]]:
        _call(bench.label)
        assert any(checkpoint.path.glob("*.safetensors"))
        rows = [{"id": row.id, "value": 1.0} for row in bench.data["evaluation"]]
        assert set(bench.data) == {"evaluation"}
        return {self.name: rows}


class Fakes(Experiment):
    align: Fake | None = None
    defenses: tuple[Fake, ...] = ()
    attacks: tuple[FakeAttack, ...] = ()
    evaluations: tuple[FakeEvaluation, ...] = (FakeEvaluation(),)


CALLS: list[str] = []
STOP: dict[str, BaseException] = {}


def _call(label: str) -> None:
    if label in STOP:
        raise STOP[label]
    CALLS.append(label)


class Conclusion(Settings):
    sentence: str = "No usable attack was found."
    status: str = "ok"
    measurements: tuple[Measurement, ...] = ()


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    STOP.clear()

    def rows(*_: Any) -> dict[str, list[Example]]:
        roles = ("defense", "attacker", "evaluation")
        return {role: [Example(f"{role} {i}", "answer") for i in range(3)] for role in roles}

    def build(folder: Path, show_text: bool = False) -> Path:
        write_text(folder / "report" / "report.html", "card")
        return folder / "report" / "report.html"

    cells = (Measurement("none", "none", None, "harm", 0.5),)
    monkeypatch.setattr("backfire.prepare.load_roles", rows)
    monkeypatch.setattr(pipeline, "conclude", lambda *_: Conclusion(measurements=cells))
    monkeypatch.setattr(pipeline, "build", build)


def experiment(**changes: Any) -> Fakes:
    settings: dict[str, Any] = {
        "name": "test",
        "model": "tiny:llama",
        "align": Fake(label="align"),
        "defenses": (Fake(label="sdd", strength=2),),
        "attacks": (FakeAttack(label="weak"), FakeAttack(label="strong", strength=9)),
        "seeds": (0,),
    }
    return Fakes(**(settings | changes))


ONE_SEED = [
    "align with align",
    "first of none/none, seed 0",
    "attack none with weak, seed 0",
    "first of none/weak, seed 0",
    "attack none with strong, seed 0",
    "first of none/strong, seed 0",
    "defend with sdd, seed 0",
    "first of sdd/none, seed 0",
    "attack sdd with weak, seed 0",
    "first of sdd/weak, seed 0",
    "attack sdd with strong, seed 0",
    "first of sdd/strong, seed 0",
]


# ----------------------------------------------------------------------------------------------- plan


def test_what_cannot_differ_is_done_once() -> None:
    plan = make_plan(experiment(seeds=(0, 1, 2)), "base", {})
    kinds = Counter(step.kind for step in plan.steps)
    # 3 seeds: one alignment; 3 defended; 2 attacks on (undefended + defended); every model measured
    # once, the undefended clean one for all seeds together.
    assert kinds == {"align": 1, "defense": 3, "attack": 12, "evaluation": 1 + 3 + 12}
    shared = next(step for step in plan.steps if step.label == "first of none/none (all seeds)")
    assert [cell.seed for cell in shared.cells] == [0, 1, 2]
    assert len(plan.models) == 3 * 2 * 3


def test_a_label_names_a_result_and_does_not_change_its_key() -> None:
    def keys(label: str) -> list[str]:
        changed = experiment(defenses=(Fake(label=label, strength=2),))
        return [step.key for step in make_plan(changed, "base", {}).steps]

    assert keys("sdd") == keys("other")


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ({"defenses": (Fake(label="sdd", strength=3),)}, 6),
        ({"attacks": (FakeAttack(label="weak", strength=7), FakeAttack(label="strong", strength=9))}, 4),
        ({"seeds": (0, 1)}, 10),
        ({"evaluations": (FakeEvaluation(), FakeEvaluation(name="second"))}, 6),
        ({"question": "why?"}, 0),
    ],
)  # fmt: skip
def test_a_change_gives_new_keys_to_what_depends_on_it(changed: Any, redone: int) -> None:
    before = {step.key for step in make_plan(experiment(), "base", {}).steps}
    after = {step.key for step in make_plan(experiment(**changed), "base", {}).steps}
    assert len(after - before) == redone


def test_rows_of_other_roles_do_not_touch_a_key() -> None:
    def keys(**rows: str) -> dict[str, str]:
        return {s.label: s.key for s in make_plan(experiment(), "base", rows).steps}

    before, after = keys(attacker="a", evaluation="e"), keys(attacker="b", evaluation="e")
    same = {label for label in before if before[label] == after[label]}
    assert same == {
        "align with align", "defend with sdd, seed 0",
        "first of none/none, seed 0", "first of sdd/none, seed 0",
    }  # fmt: skip


# -------------------------------------------------------------------------------------- run and resume


def test_a_run_does_every_step_once_and_a_second_one_none(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run(experiment(), out)
    assert ONE_SEED == CALLS
    assert first.computed == len(ONE_SEED)
    assert first.report.is_file()
    assert first.conclusion["sentence"] == "No usable attack was found."
    second = run(experiment(), out)
    assert second.computed == 0
    assert len(CALLS) == len(ONE_SEED)
    assert second.conclusion == first.conclusion


def test_tables_carry_the_cell_of_every_row(tmp_path: Path) -> None:
    run(experiment(seeds=(0, 1)), tmp_path)
    rows = read_table(tmp_path / "tables" / "first.parquet", dict)
    assert list(rows[0])[:3] == ["defense", "attack", "seed"]
    counts = Counter((row["defense"], row["attack"], row["seed"]) for row in rows)
    assert len(counts) == 2 * 3 * 2
    assert set(counts.values()) == {3}
    effects = read_table(tmp_path / "tables" / "effects.parquet", dict)
    assert effects[0]["defense"] == "align"
    assert len(effects) == 1 + 2 + 8
    cells = read_table(tmp_path / "tables" / "cells.parquet", dict)
    assert {row["status"] for row in cells} == {"done"}
    assert len(cells) == 12


@pytest.mark.parametrize("label", ONE_SEED)
def test_an_interrupt_at_any_step_loses_only_that_step(tmp_path: Path, label: str) -> None:
    STOP[label] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(experiment(), tmp_path)
    assert read_json(tmp_path / "manifest.json")["status"] == "interrupted"
    STOP.clear()
    run(experiment(), tmp_path)
    assert Counter(CALLS) == Counter(ONE_SEED)
    assert read_json(tmp_path / "manifest.json")["status"] == "complete"


def test_an_interrupted_training_finds_its_own_state_again(tmp_path: Path) -> None:
    STOP["attack sdd with weak, seed 0"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(experiment(), tmp_path)
    STOP.clear()
    run(experiment(), tmp_path)
    effects = read_table(tmp_path / "tables" / "effects.parquet", dict)
    resumed = [(row["defense"], row["attack"]) for row in effects if row["resumed"]]
    assert resumed == [("sdd", "weak")]


def test_an_interrupt_while_concluding_repeats_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build", stop)
        with pytest.raises(KeyboardInterrupt):
            run(experiment(), tmp_path)
    assert run(experiment(), tmp_path).report.is_file()
    assert Counter(CALLS) == Counter(ONE_SEED)


def test_fresh_does_everything_again(tmp_path: Path) -> None:
    run(experiment(), tmp_path)
    run(experiment(), tmp_path, fresh=True)
    assert CALLS == ONE_SEED * 2


def test_a_damaged_stage_is_done_again_with_what_builds_on_it(tmp_path: Path) -> None:
    run(experiment(), tmp_path)
    CALLS.clear()
    (victim,) = tmp_path.glob("stages/align-*/checkpoint/model.safetensors")
    victim.write_text("truncated")
    run(experiment(), tmp_path)
    assert CALLS == ["align with align"]


# ------------------------------------------------------------------------------------ attacked weights


def attacked_weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("stages/attack-*/checkpoint"))


def test_attacked_weights_are_deleted_and_their_rows_kept(tmp_path: Path) -> None:
    run(experiment(), tmp_path)
    assert attacked_weights(tmp_path) == []
    assert len(list(tmp_path.glob("stages/defense-*/checkpoint"))) == 1
    stages = read_json(tmp_path / "manifest.json")["stages"]
    deleted = [s["label"] for s in stages if s["weights"]]
    assert deleted == [label for label in ONE_SEED if label.startswith("attack")]


def test_no_two_attacked_models_are_on_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []

    def count(label: str) -> None:
        CALLS.append(label)
        most.append(len(attacked_weights(tmp_path)))

    monkeypatch.setattr(f"{__name__}._call", count)
    run(experiment(), tmp_path)
    assert max(most) == 1


def test_kept_weights_stay_and_asking_later_makes_them_again(tmp_path: Path) -> None:
    run(experiment(), tmp_path)
    CALLS.clear()
    run(experiment(keep_attacked=True), tmp_path)
    assert [label for label in ONE_SEED if label.startswith("attack")] == CALLS
    assert len(attacked_weights(tmp_path)) == 4
    CALLS.clear()
    run(experiment(keep_attacked=True), tmp_path)
    assert CALLS == []


def test_a_further_evaluation_makes_attacked_models_again_but_measures_nothing_twice(
    tmp_path: Path,
) -> None:
    run(experiment(), tmp_path)
    CALLS.clear()
    both = (FakeEvaluation(), FakeEvaluation(name="second"))
    run(experiment(evaluations=both), tmp_path)
    assert not [label for label in CALLS if label.startswith(("first", "defend", "align"))]
    assert len([label for label in CALLS if label.startswith("second")]) == 6
    assert attacked_weights(tmp_path) == []


# -------------------------------------------------------------------------------------------- failures


def test_an_attack_that_diverges_is_a_result_and_the_run_goes_on(tmp_path: Path) -> None:
    STOP["attack sdd with weak, seed 0"] = TrainingError("loss nan at step 3")
    outcome = run(experiment(), tmp_path)
    assert len(outcome.failed) == 2  # the attack, and the measurement of what it should have made
    assert "loss nan at step 3" in outcome.failed[0]
    cells = read_table(tmp_path / "tables" / "cells.parquet", dict)
    failed = [(c["defense"], c["attack"], c["reason"]) for c in cells if c["status"] == "failed"]
    assert failed == [("sdd", "weak", "loss nan at step 3")]
    assert read_json(tmp_path / "manifest.json")["status"] == "failed in part"
    # The same settings would diverge again.
    CALLS.clear()
    STOP.clear()
    assert run(experiment(), tmp_path).failed == outcome.failed
    assert CALLS == []
    assert run(experiment(), tmp_path, fresh=True).failed == ()


def test_divergence_is_told_from_failure_in_the_model_and_in_what_is_asked_of_it(
    tmp_path: Path,
) -> None:
    STOP["attack sdd with weak, seed 0"] = DivergedError("diverged at step 3 of 9")
    STOP["first of none/strong, seed 0"] = DivergedError("its logits are not numbers")
    outcome = run(experiment(), tmp_path)
    assert (outcome.failed, len(outcome.came_to)) == ((), 2)
    cells = read_table(tmp_path / "tables" / "cells.parquet", dict)
    undone = {(c["defense"], c["attack"]): (c["status"], c["reason"]) for c in cells if c["reason"]}
    assert undone == {
        ("sdd", "weak"): ("diverged", "diverged at step 3 of 9"),
        ("none", "strong"): ("diverged", "its logits are not numbers"),
    }
    assert attacked_weights(tmp_path) == [], (
        "nothing will be asked of a model that gives no numbers"
    )


def test_a_defense_that_diverges_is_a_failure(tmp_path: Path) -> None:
    STOP["defend with sdd, seed 0"] = DivergedError("diverged at step 3 of 9")
    outcome = run(experiment(), tmp_path)
    assert "diverged at step 3 of 9" in outcome.failed
    assert outcome.came_to == ()


def test_an_undefended_model_that_gives_no_numbers_ends_the_run(tmp_path: Path) -> None:
    STOP["first of none/none, seed 0"] = DivergedError("its logits are not numbers")
    with pytest.raises(DivergedError):
        run(experiment(), tmp_path)


def test_a_failed_defense_takes_its_attacks_with_it(tmp_path: Path) -> None:
    STOP["defend with sdd, seed 0"] = TrainingError("loss nan")
    run(experiment(), tmp_path)
    assert ONE_SEED[:6] == CALLS
    status = {s["label"]: s["status"] for s in read_json(tmp_path / "manifest.json")["stages"]}
    assert status["defend with sdd, seed 0"] == "failed"
    assert status["first of sdd/strong, seed 0"] == "skipped"


def test_a_failed_alignment_ends_the_run(tmp_path: Path) -> None:
    STOP["align with align"] = TrainingError("loss nan")
    with pytest.raises(TrainingError, match="loss nan"):
        run(experiment(), tmp_path)
    assert CALLS == []


def test_missing_rows_are_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backfire.prepare.load_roles", lambda *_: {"defense": [Example("a", "b")]})
    with pytest.raises(DataError, match=r"(?s)evaluation.*weak needs 1 rows of role `attacker`"):
        run(experiment(), tmp_path)
    assert CALLS == []


def test_a_run_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"schema_version": 99})
    with pytest.raises(CheckpointError, match="version 99"):
        run(experiment(), tmp_path, fresh=True)
    assert read_json(tmp_path / "manifest.json") == {"schema_version": 99}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(PrerequisiteError, match="another process"):
        run(experiment(), tmp_path)
    run(experiment(), tmp_path)


def test_a_disk_too_small_is_noticed_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PrerequisiteError, match=r"need about .* GiB"):
        run(experiment(), tmp_path)
    assert CALLS == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_plainly_and_loses_nothing(tmp_path: Path, error: Exception) -> None:
    STOP["defend with sdd, seed 0"] = error
    with pytest.raises(PrerequisiteError, match="disk is full"):
        run(experiment(), tmp_path)
    STOP.clear()
    run(experiment(), tmp_path)
    assert Counter(CALLS) == Counter(ONE_SEED)


def test_an_unexpected_error_is_not_hidden(tmp_path: Path) -> None:
    STOP["defend with sdd, seed 0"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        run(experiment(), tmp_path)
    assert read_json(tmp_path / "manifest.json")["status"] == "failed"


# --------------------------------------------------------------------------------------------- records


def test_the_manifest_says_what_was_asked_and_what_was_done(tmp_path: Path) -> None:
    run(experiment(), tmp_path, passed={"set": ["seeds=[0]"]})
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["schema_version"] == 1
    assert manifest["digest"] == experiment().digest
    assert manifest["passed"] == {"set": ["seeds=[0]"]}
    assert manifest["settings"]["seeds"] == [0]
    assert {"torch", "python", "backfire"} <= set(manifest["versions"])
    assert manifest["device"]["device"] in {"cpu", "cuda", "mps"}
    assert [stage["status"] for stage in manifest["stages"]] == ["done"] * len(ONE_SEED)
    assert all(stage["seconds"] >= 0 for stage in manifest["stages"])
    assert manifest["data"]["attacker"]["rows"] == 3
    # A second run, which computes nothing, still knows what the first one ran on.
    run(experiment(), tmp_path)
    assert read_json(tmp_path / "manifest.json")["device"] == manifest["device"]


def test_progress_counts_stages_and_names_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress: Progress = Plain()
    run(experiment(), tmp_path, progress=progress)
    shown = capsys.readouterr().err
    assert "stage 1 of 12: align with align\n" in shown
    assert "stage 12 of 12: first of sdd/strong, seed 0, about 0 s left in all" in shown
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert any(event["event"] == "said" for event in events)
