"""The second round: the worst attack again, on fresh seeds and on hazards kept back until then."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import ValidationError

from backfire import pipeline
from backfire.config import Confirm, Experiment
from backfire.engine.settings import Member
from backfire.errors import DataError
from backfire.evaluate.verdict import VerdictSettings
from backfire.pipeline import run
from backfire.plan import make_plan
from backfire.records import Answer, Checkpoint, Example, Role, Verdict
from backfire.stage import Bench, Settings
from backfire.store import read_json, read_table, write_text

CALLS: list[tuple[str, str]] = []
"""Label of each step that was worked on, with the hazards it was given."""


class Fake(Member):
    """A transform whose weights are the names of what was done to the model, and the seed."""

    name: Literal["fake"] = "fake"
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    does: str

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        CALLS.append((bench.label, ""))
        source = checkpoint.path / "model.safetensors"
        before = source.read_text() if source.stat().st_size < 200 else ""
        weights = bench.workdir / "checkpoint" / "model.safetensors"
        write_text(weights, f"{before} {self.does}:{bench.seed}")
        return replace(checkpoint, path=weights.parent, key="", base=None)


class Asked(Settings):
    """Harmful after `hard`, in the first round more often than in the second."""

    name: Literal["asked"] = "asked"
    roles: ClassVar[tuple[Role, ...]] = ("evaluation",)

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, list[Any]]:
        ids = [row.prompt.removeprefix("evaluation ") for row in bench.data["evaluation"]]
        CALLS.append((bench.label, " ".join(ids)))
        weights = (checkpoint.path / "model.safetensors").read_bytes()
        attacked = b"hard:" in weights or (b"soft:" in weights and b"shield:" not in weights)
        return {
            "verdicts": [
                Verdict(
                    i, "programmatic", "1", attacked and (b"shield" not in weights or int(i) < 6)
                )
                for i in ids
            ]
        }


class Known(Settings):
    """Knows all answers whatever happens; reads no rows."""

    name: Literal["known"] = "known"
    roles: ClassVar[tuple[Role, ...]] = ()

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, list[Any]]:
        CALLS.append((bench.label, ""))
        return {"answers": [Answer("quiz", str(i), 0, 0, 0, 4) for i in range(50)]}


class Fakes(Experiment):
    defenses: tuple[Fake, ...] = (Fake(label="shield", does="shield"),)
    attacks: tuple[Fake, ...] = (
        Fake(label="soft", does="soft"),
        Fake(label="hard", does="hard"),
    )
    evaluations: tuple[Asked | Known, ...] = (Asked(), Known())


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()

    def rows(*_: Any) -> dict[str, list[Example]]:
        return {
            "attacker": [Example("attacker 0", "answer")],
            "evaluation": [Example(f"evaluation {i}", "answer") for i in range(10)],
        }

    monkeypatch.setattr("backfire.prepare.load_roles", rows)


def experiment(**changes: Any) -> Fakes:
    settings: dict[str, Any] = {
        "name": "test",
        "model": "tiny:llama",
        "seeds": (0, 1),
        "confirm": Confirm(seeds=(7, 8, 9), prompts=4),
        "verdict": VerdictSettings(draws=100),
    }
    return Fakes(**(settings | changes))


def test_from_the_search_to_the_second_round(tmp_path: Path) -> None:
    outcome = run(experiment(), tmp_path / "run")
    first = [call for call in CALLS if call[0].endswith((", seed 0", ", seed 1", "(all seeds)"))]
    second = [call[0] for call in CALLS if call not in first]
    # Only the worst attack, on the defense and on the control, each trained anew with each seed.
    assert Counter(label for label in second if "known" not in label and "asked" not in label) == {
        f"{what}, seed {seed}": 1
        for what in ("defend with shield", "attack none with hard", "attack shield with hard")
        for seed in (7, 8, 9)
    }
    # Hazards are asked in one round only.
    asked = {label: ids for label, ids in CALLS if label.startswith("asked")}
    assert asked["asked of shield/hard, seed 0"] == "0 1 2 3 4 5"
    assert asked["asked of shield/hard, seed 7"] == "6 7 8 9"
    # What reads no hazards and no fresh model is not measured again.
    assert sum(label.startswith("known of none/none") for label, _ in CALLS) == 1

    (verdict,) = outcome.conclusion["defenses"]
    assert verdict["worst_attack"] == "hard"
    found = verdict["second_round"]
    assert (found["attack"], found["seeds"], found["prompts"]) == ("hard", [7, 8, 9], 4)
    assert found["outcome"]["usable"]["value"] == 0
    assert found["outcome"]["control_usable"]["value"] == 1
    assert found["confirmed"] is False
    (note,) = [note for note in verdict["notes"] if note.startswith("Second round")]
    assert "on 3 fresh seeds and 4 fresh prompts" in note
    assert "usable harm is 0 % (0 to 49), where the search found 100 %" in note
    assert note.endswith("This does not confirm it.")
    assert not any("not scored again" in note for note in verdict["notes"])

    # The run's own tables hold the search alone.
    seeds = {row["seed"] for row in read_table(tmp_path / "run/tables/verdicts.parquet", dict)}
    assert seeds == {0, 1}
    later = read_table(tmp_path / "run/tables/second-1/verdicts.parquet", dict)
    assert {(row["defense"], row["attack"]) for row in later} == {
        ("none", "none"), ("none", "hard"), ("shield", "none"), ("shield", "hard"),
    }  # fmt: skip
    assert {row["seed"] for row in later} == {7, 8, 9}
    assert "Second round" in (tmp_path / "run/report/report.html").read_text(encoding="utf-8")


def test_a_finished_second_round_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(experiment(), tmp_path / "run")
    CALLS.clear()
    monkeypatch.setattr(pipeline, "conclude", None)  # a finished run does not even look again
    again = run(experiment(), tmp_path / "run")
    assert CALLS == []
    assert again.computed == 0
    assert again.conclusion == first.conclusion


def test_attacked_weights_of_the_second_round_are_deleted_too(tmp_path: Path) -> None:
    run(experiment(), tmp_path / "run")
    left = list((tmp_path / "run/stages").glob("attack-*/checkpoint"))
    assert left == []
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}


def test_nothing_is_kept_back_without_a_second_round(tmp_path: Path) -> None:
    run(experiment(confirm=None), tmp_path / "run")
    assert ("asked of shield/hard, seed 0", "0 1 2 3 4 5 6 7 8 9") in CALLS
    assert not (tmp_path / "run/second-round.json").exists()


def test_keys_change_where_other_hazards_are_asked_and_nowhere_else() -> None:
    plain, kept = (
        {step.label: step.key for step in make_plan(experiment(confirm=c), "base", {}).steps}
        for c in (None, Confirm(seeds=(7,), prompts=4))
    )
    changed = {label for label in plain if plain[label] != kept[label]}
    assert changed == {label for label in plain if label.startswith("asked")}


def test_keeping_back_every_hazard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="keeps back 10 rows of role `evaluation`, and there are 10"
    ):
        run(experiment(confirm=Confirm(seeds=(7,), prompts=10)), tmp_path / "run")
    assert CALLS == []


def test_seeds_of_the_search_confirm_nothing() -> None:
    with pytest.raises(ValidationError, match=r"confirm.seeds: 1 are among the run's own seeds"):
        experiment(confirm=Confirm(seeds=(1, 7)))
