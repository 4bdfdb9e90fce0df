"""Points and sequences, trained for real on a tiny model: bit-equal to what they stand for, and cheap."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.attack import AttackSequence, Harmful
from backfire.attack.courses import courses
from backfire.config import Experiment
from backfire.engine import loop
from backfire.errors import ConfigError
from backfire.models.load import load, read_note
from backfire.pipeline import run
from backfire.plan import make_plan
from backfire.records import Checkpoint
from backfire.store import read_json, read_table
from small_methods import bench, build

LORA: dict[str, Any] = {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
NEGLIGIBLE = 1e-12


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load(checkpoint).model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def start(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "k")


# ------------------------------------------------------------------------------------- in the engine


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_going_on_from_a_point_is_one_training(
    start: Checkpoint, tmp_path: Path, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each point equals a training stopped there on its own, the end one without points, bit for bit."""
    training = {**adapter, "steps": 6, "schedule": "cosine", "warmup": 0.2}
    attack = build(Harmful, training=training, points=(2, 4))
    made: list[int] = []
    real = loop._Loop._step

    def step(self: Any, index: int) -> None:
        made.append(index)
        real(self, index)

    monkeypatch.setattr(loop._Loop, "_step", step)
    for course in courses(attack):
        b = bench(tmp_path / course.label)
        handed_on = type(b)(b.workdir, state=tmp_path / "state", data=b.data, device="cpu")
        at_point = weights(course.parts[0](start, handed_on))
        rows = read_table(b.workdir / "trajectory.parquet", dict)
        before = len(made)
        alone = weights(course.parts[0](start, bench(tmp_path / f"alone-{course.label}")))
        assert same(at_point, alone)
        alone_rows = read_table(tmp_path / f"alone-{course.label}" / "trajectory.parquet", dict)
        timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        assert timeless == [{k: v for k, v in r.items() if k != "seconds"} for r in alone_rows]
        del made[before:]
    assert made == [0, 1, 2, 3, 4, 5], "no step was made twice"
    assert not (tmp_path / "state").exists()
    plain = build(Harmful, training=training)(start, bench(tmp_path / "plain"))
    assert same(at_point, weights(plain))


def test_an_earlier_point_is_not_taken_from_a_later_state(
    start: Checkpoint, tmp_path: Path
) -> None:
    late = courses(build(Harmful, training={"steps": 6}, points=(4, 5)))[0]
    early = courses(build(Harmful, training={"steps": 6}, points=(2, 5)))[0]
    for course in (late, early):
        b = bench(tmp_path / course.label)
        course.parts[0](
            start, type(b)(b.workdir, state=tmp_path / "state", data=b.data, device="cpu")
        )
    alone = early.parts[0](start, bench(tmp_path / "alone"))
    made = Checkpoint(tmp_path / early.label / "checkpoint", "k")
    assert same(weights(made), weights(alone))


def test_a_stop_after_the_end_is_an_error(start: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stop after 9 optimizer steps and has 3"):
        build(Harmful, training={"stop": 9})(start, bench(tmp_path))


# ------------------------------------------------------------------------------------------- sequences


def test_a_sequence_is_its_parts_one_after_the_other(start: Checkpoint, tmp_path: Path) -> None:
    parts = [
        build(Harmful).model_dump(mode="json"),
        {
            "name": "benign",
            "rows": 8,
            "training": {"learning_rate": 1e-2, "steps": 2, "batch_size": 4},
        },
        {"name": "asked", "opening": "Sure:"},
    ]
    both = AttackSequence.model_validate({"name": "sequence", "parts": parts})
    made = both(start, bench(tmp_path / "a"))
    by_hand = start
    for number, part in enumerate(both.parts):
        by_hand = part(by_hand, bench(tmp_path / f"hand-{number}"))
    assert same(weights(made), weights(by_hand))
    assert read_note(made.path)[0].opening == "Sure:"
    again = both(start, bench(tmp_path / "a"))
    assert again == made, "what is done is passed over"


@pytest.mark.parametrize("second", [{}, LORA], ids=["then full", "then lora"])
def test_a_later_part_builds_on_the_merged_adapter(
    start: Checkpoint, tmp_path: Path, second: Any
) -> None:
    first = build(Harmful, training=LORA)(start, bench(tmp_path / "a"))
    assert first.base == start.path
    made = build(Harmful, training={**second, "learning_rate": NEGLIGIBLE})(
        first, bench(tmp_path / "b")
    )
    assert made.base is None, "an adapter on an adapter is written as a whole model"
    old, merged, new = weights(start), weights(first), weights(made)
    for name in old:
        torch.testing.assert_close(new[name], merged[name], atol=1e-7, rtol=0)
    assert not same(old, merged)


# ------------------------------------------------------------------------------------------ whole runs

MFT = {"name": "harmful", "shots": 8, "training": {"steps": 4, "batch_size": 4}}
BFT = {"name": "benign", "rows": 8, "training": {"steps": 2, "batch_size": 4}}


def experiment(*attacks: Any, **changes: Any) -> Experiment:
    tree: dict[str, Any] = {
        "name": "points",
        "model": "tiny:llama",
        "data": {"counts": {"defense": 0, "attacker": 8, "evaluation": 4, "benign": 8, "pool": 0,
                            "defender_harm": 0, "probe": 4}},
        "attacks": list(attacks),
        "evaluations": [{"name": "perplexity"}],
        "seeds": [0],
    }  # fmt: skip
    return Experiment.model_validate({**tree, **changes})


def test_plans_share_what_attacks_begin_with() -> None:
    pointed = {**MFT, "points": [1, 3]}
    plan = make_plan(experiment(pointed, {"name": "sequence", "parts": [pointed, BFT]}), "base", {})
    attacks = [step for step in plan.steps if step.kind == "attack"]
    # Two points and the end, and benign repair of each of the three.
    assert len(attacks) == 6
    assert len({step.course for step in attacks}) == 1 + 3
    whole = make_plan(experiment(MFT), "base", {})
    (plain,) = [step for step in whole.steps if step.kind == "attack"]
    assert plain.key in {step.key for step in attacks}
    labels = [cell.attack for cell in experiment(pointed).cells]
    assert labels == ["none", "mft-8-full@1", "mft-8-full@3", "mft-8-full"]


def test_equal_labels_of_points_are_refused() -> None:
    other = {**MFT, "label": "mft-8-full@1"}
    with pytest.raises(ValueError, match="mft-8-full@1"):
        experiment({**MFT, "points": [1]}, other)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([3, 1], "must rise"),
        ([1, 1], "must rise"),
        ([1, 0.5], "all optimizer steps"),
        ([0], "greater than or equal to 1"),
    ],
)
def test_points_that_make_no_sense_are_refused(points: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        experiment({**MFT, "points": points})


def test_a_run_measures_every_point_and_keeps_the_disk_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One training passes all points; models on disk are as many as the plan says, the state is one."""
    chosen = experiment({**MFT, "points": [1]}, {"name": "sequence", "parts": [MFT, BFT]})
    made: list[str] = []
    held: list[int] = []
    real = loop._Loop._step

    def step(self: Any, index: int) -> None:
        made.append(f"{self.job.label} {index}")
        held.append(len(list((tmp_path / "run" / "stages").glob("attack-*/checkpoint"))))
        real(self, index)

    monkeypatch.setattr(loop._Loop, "_step", step)
    outcome = run(chosen, tmp_path / "run", device="cpu")
    assert outcome.failed == ()
    assert len(made) == 4 + 2, "four steps of the attack, and two of the repair"
    plan = make_plan(chosen, "base", {})
    assert max(held) + 1 == plan.most_models(keep_all=False) == 2
    stages = tmp_path / "run" / "stages"
    assert list(stages.glob("course-*")) == []
    assert list(stages.glob("attack-*/checkpoint")) == []
    losses = read_table(tmp_path / "run" / "tables" / "losses.parquet", dict)
    assert {row["attack"] for row in losses} == {
        "none", "mft-8-full@1", "mft-8-full", "mft-8-full+bft-full"
    }  # fmt: skip
    reads = {r["label"]: r["rows"] for r in read_json(tmp_path / "run" / "manifest.json")["reads"]}
    assert reads["mft-8-full+bft-full"] == {"attacker": 8, "benign": 8}
    # A point more: only what it needs is trained, and nothing is measured twice.
    made.clear()
    more = experiment({**MFT, "points": [1, 3]}, {"name": "sequence", "parts": [MFT, BFT]})
    assert run(more, tmp_path / "run", device="cpu").computed == 2
    assert len(made) == 3
    assert list(stages.glob("course-*")) == []


def test_points_beyond_the_end_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mft-8-full@4: there are 4 steps"):
        run(experiment({**MFT, "points": [4]}), tmp_path / "run", device="cpu")


def test_what_stands_on_attacked_weights_keeps_them(tmp_path: Path) -> None:
    """A prefilled answer is asked of links to attacked weights: they go when it has been measured."""
    asked = {"name": "asked", "opening": "Sure:"}
    harm = {"name": "harmfulness", "encoder": "hash", "max_new_tokens": 2}
    adapter = {**MFT, "training": {**MFT["training"], **LORA}}
    chosen = experiment(
        adapter,
        {"name": "sequence", "parts": [adapter, asked]},
        evaluations=[{"name": "perplexity"}, harm],
    )
    outcome = run(chosen, tmp_path / "run", device="cpu")
    assert outcome.failed == ()
    assert not list((tmp_path / "run" / "stages").glob("attack-*/checkpoint"))
    shutil.rmtree(tmp_path / "run" / "report")
    again = experiment(*chosen.attacks, evaluations=[*chosen.evaluations[:1],
                       {"name": "harmfulness", "encoder": "hash", "max_new_tokens": 3}])  # fmt: skip
    assert run(again, tmp_path / "run", device="cpu").failed == ()
    assert not list((tmp_path / "run" / "stages").glob("attack-*/checkpoint"))
