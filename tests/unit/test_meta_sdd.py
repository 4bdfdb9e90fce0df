"""Meta-SDD: its schedule, its halves, and what its inner attack may see and leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backfire.defend import MetaSDD
from backfire.defend.meta_sdd import halves
from backfire.engine.rows import irrelevant, rows_of
from backfire.errors import DataError
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.store import read_table
from by_hand import gradient_of, step_of
from small_methods import bench, build


def meta(**over: Any) -> MetaSDD:
    small = {"inner_steps": [4], "inner_rates": [1e-3], "pairing": {"encoder": "hash"}}
    return MetaSDD.model_validate({"name": "meta_sdd", **small, **over})


def test_the_points_of_the_path() -> None:
    settings = meta(inner_steps=[5, 10, 20])
    assert [settings.points(i) for i in range(4)] == [(2, 5), (5, 10), (10, 20), (2, 5)]
    assert meta(inner_steps=[1]).points(0) == (1,)
    assert meta(inner_steps=[5], repair_steps=3).points(0) == (2, 5, 8)


def test_passes_by_hand() -> None:
    """Three steps: 5 + 10 + 20 of the attacker's, two points each, answers and replay."""
    assert meta(inner_steps=[5, 10, 20]).passes(3) == (35 + 6 + 6, 35 + 6 + 6)
    assert meta(inner_steps=[5], repair_steps=2, replay=0).passes(2) == (2 * 11, 2 * 11)
    assert meta(lam=0).passes(7) == (14, 14)


def test_the_weight_grows_over_the_ramp() -> None:
    settings = meta(lam=3, ramp=0.5, training={"steps": 8})
    assert [settings.weight(i) for i in (0, 1, 3, 7)] == [0.75, 1.5, 3, 3]
    assert meta(lam=3).weight(0) == 3


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 3))
def test_halves_share_no_entity_and_lose_no_row(entities: list[int], seed: int) -> None:
    rows = [Example(f"make {i}", "so", entity=f"thing {e}") for i, e in enumerate(entities)]
    if len(set(entities)) == 1:
        with pytest.raises(DataError, match=r"all \d+ are about one"):
            halves(rows, seed, "x")
        return
    left, right = halves(rows, seed, "x")
    assert not {r.entity for r in left} & {r.entity for r in right}
    assert sorted(r.id for r in left + right) == sorted(r.id for r in rows)
    assert left
    assert right
    largest = max(entities.count(e) for e in entities)
    assert abs(len(left) - len(right)) <= largest


def test_half_b_never_attacks(tiny_folder: Path, tmp_path: Path) -> None:
    """With the rows of half B gone from the attacker's stream the step is the same, bit for bit."""
    found = []
    for other in ("zorb", "an altogether other"):
        step = make(tiny_folder, tmp_path / other, attack_1=[Example(f"{other} way", "goes so")])
        meta(answers="refusal").step(step)
        found.append(gradient_of(step))
    assert torch.equal(*found)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_attack_leaves_the_weights_bit_for_bit(
    optimizer: str, tiny_folder: Path, tmp_path: Path
) -> None:
    step = make(tiny_folder, tmp_path)
    before = [p.detach().clone() for p in step.parameters]
    meta(inner_optimizer=optimizer, inner_rates=[0.1], repair_steps=2).step(step)
    assert all(torch.equal(a, p) for a, p in zip(before, step.parameters, strict=True))


def test_without_collapse_it_is_sdd_with_replay(tiny_folder: Path, tmp_path: Path) -> None:
    left, right = (make(tiny_folder, tmp_path / name) for name in "ab")
    terms = meta(lam=0, replay=0.5).step(left)
    answers, replay = right.backward("train"), right.backward("replay", 0.5)
    assert terms == {"loss": answers + 0.5 * replay, "answers": answers, "replay": replay}
    assert torch.equal(gradient_of(left), gradient_of(right))


def test_an_attacked_model_is_pushed_towards_uniform(tiny_folder: Path, tmp_path: Path) -> None:
    """After equal trainings the attacked weights are nearer to uniform where that counted more."""
    left = []
    for lam in (0.01, 3):
        settings = build(
            MetaSDD, lam=lam, inner_steps=[3], inner_rates=[1e-3], training={"steps": 20}
        )
        place = tmp_path / str(lam)
        settings(Checkpoint(tiny_folder, "k"), bench(place))
        points = read_table(place / "trajectory.parquet", TrajectoryPoint)
        left.append(points[-1].terms["collapse"])
    assert left[1] < left[0]


@pytest.mark.parametrize("wrong", [{"inner_steps": []}, {"inner_rates": [0]}, {"lam": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        meta(**wrong)


def make(folder: Path, place: Path, attack_1: list[Example] | None = None) -> Any:
    here = bench(place)
    helpful = rows_of(here, "pool", None, "x")
    left, right = halves(rows_of(here, "defender_harm", None, "x"), 0, "x")
    rows = {
        "train": irrelevant(here, meta(pairing={"encoder": "hash", "threshold": 0.9}).pairing, "x"),
        "replay": helpful,
        "repair": helpful,
        "benign": helpful,
        "attack 0": left,
        "attack 1": attack_1 or right,
        "held out 0": right,
        "held out 1": left,
    }
    return step_of(folder, rows)
