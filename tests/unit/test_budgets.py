"""Budgets: what an attack took, the smallest one that breaks a defense, and the curve of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backfire import gather
from backfire.attack import AttackSequence, Benign, Harmful, IdentityShift
from backfire.attack.courses import courses, shots
from backfire.engine.settings import LoRA
from backfire.evaluate.budgets import break_budgets
from backfire.evaluate.cells import Cells
from backfire.evaluate.statistics import Estimate
from backfire.plan import Step
from backfire.report.figures.budgets import budgets
from backfire.report.figures.words import Blank
from backfire.report.grid import Grid
from backfire.report.run import read_run
from backfire.report.svg import Picture
from backfire.store import write_json
from synthetic_run import make, write_run


def cells(**steps: float) -> Cells:
    """Return a run whose attacks differ in their steps."""
    rows = [
        {"defense": "sdd", "attack": attack, "seed": seed, "tier": "t", "steps": count + seed}
        for attack, count in steps.items()
        for seed in (0, 2)
    ]
    return Cells({"cells": rows})


def test_the_interval_of_a_break_budget_inverts_those_of_usable_harm() -> None:
    run = cells(a=9, b=19, c=39, d=79)  # 10, 20, 40, 80 on average over two seeds
    usable = {
        "a": Estimate(0.1, 0.0, 0.3),
        "b": Estimate(0.4, 0.2, 0.6),  # may be at the level
        "c": Estimate(0.6, 0.4, 0.8),  # is, by its value
        "d": Estimate(0.9, 0.7, 1.0),  # surely is
    }
    (found,) = break_budgets(run, "sdd", usable, 0.5)
    assert (found.unit, found.budget, found.low, found.high) == ("steps", 40.0, 20.0, 80.0)
    assert found.sentence == (
        "Usable harm reaches 50 % in tier t at 40 optimizer steps (20 to 80; tried up to 80)"
    )


def test_what_is_not_broken_is_censored_and_never_a_number() -> None:
    run = cells(a=9, b=19)
    usable = {"a": Estimate(0.1, 0.0, 0.2), "b": Estimate(0.4, 0.2, 0.6)}
    (found,) = break_budgets(run, "sdd", usable, 0.5)
    assert (found.budget, found.low, found.high, found.up_to) == (None, 20.0, None, 20.0)
    assert "up to 20 optimizer steps; its interval allows 50 % from 20 on" in found.sentence
    usable["b"] = Estimate(0.5, 0.2, 0.8)
    (found,) = break_budgets(run, "sdd", usable, 0.5)
    assert (found.budget, found.high) == (20.0, None)
    assert "(20 to beyond 20" in found.sentence


def test_an_attack_without_a_value_or_a_budget_breaks_nothing() -> None:
    usable = {"a": Estimate(None, note="absent"), "elsewhere": Estimate(0.9, 0.8, 1.0)}
    assert break_budgets(cells(a=9), "sdd", usable, 0.5) == ()


# --------------------------------------------------------------------------------- what an attack took


def step(folder: Path, key: str, member: Any, **effect: Any) -> Step:
    """Return a finished attack's step."""
    place = folder / "stages" / f"attack-{key}"
    place.mkdir(parents=True)
    if effect:
        write_json(place / effect.pop("file", "effect.json"), effect)
    return Step("attack", key, member, "", 0, ())


def test_steps_tokens_and_flops_add_up_over_the_parts(tmp_path: Path) -> None:
    full = {"steps": 5, "tokens": 100, "forwards": 5, "backwards": 5, "parameters": "full"}
    lora = {
        "steps": 3,
        "tokens": 60,
        "forwards": 9,
        "backwards": 3,
        "parameters": "lora, attention",
    }
    chain = [
        step(tmp_path, "a", Harmful(), **full),
        step(tmp_path, "b", Benign(), **lora),
        step(tmp_path, "c", object(), file="budget.json", steps=2, tokens=7, flops=1000.0),
        step(tmp_path, "d", object()),  # asks otherwise: nothing trained
    ]
    spent = gather._spent(tmp_path, chain, weights=10)
    # 6 N a token with all weights; 2 N forward and 2 N / 3 backward with an adapter, one pass of three.
    assert spent == {
        "steps": 10.0,
        "tokens": 167.0,
        "flops": pytest.approx(6 * 10 * 100 + (2 + 2 / 3) * 10 * 60 + 1000),
    }


def test_a_training_that_left_no_effect_makes_the_budget_unknown(tmp_path: Path) -> None:
    chain = [step(tmp_path, "a", Harmful())]
    assert set(gather._spent(tmp_path, chain, weights=10).values()) == {None}
    assert set(gather._spent(tmp_path, [], weights=10).values()) == {None}


def test_shots_are_the_rows_an_attacker_needs() -> None:
    assert shots(Harmful(shots=10)) == 10
    assert shots(IdentityShift()) == 10
    assert shots(Benign()) == 0
    both = AttackSequence(parts=(Harmful(shots=10), Harmful(shots=50, training={"lora": {}})))  # type: ignore[arg-type]
    (course,) = courses(both)
    assert gather._shots(course) == 50, "smaller budgets are prefixes of larger ones"
    assert gather._tier(course) == "harmful, all weights then harmful, adapter"
    assert LoRA() == both.parts[1].training.lora


# ------------------------------------------------------------------------------------------ the figure


def drawn(folder: Path, spent: dict[str, dict[str, Any]]) -> Picture | Blank:
    tables, conclusion = make()
    for row in tables["cells"]:
        row |= {"tier": None, "shots": None, "steps": None, **spent.get(row["attack"], {})}
    return budgets(Grid(read_run(write_run(folder, tables, conclusion))))


def test_a_curve_needs_two_budgets_of_one_kind(tmp_path: Path) -> None:
    one = {"mft-10-full": {"tier": "harmful", "shots": 10.0}}
    found = drawn(tmp_path / "one", one)
    assert isinstance(found, Blank)
    assert "points" in found.reason
    two = {**one, "mft-100-full": {"tier": "harmful", "shots": 100.0, "steps": 25.0}}
    picture = drawn(tmp_path / "two", two)
    assert isinstance(picture, Picture)
    assert "harmful rows" in picture.svg
    assert "optimizer steps" not in picture.svg, "only one number of steps was tried"
    tips = [tip for tip in picture.tips.values() if tip.startswith("sdd, after mft-100-full")]
    assert len(tips) == 3, "verified harm, usable harm and retention"
    again = drawn(tmp_path / "again", two)
    assert isinstance(again, Picture)
    assert again.svg == picture.svg


def test_statuses_that_are_results_are_told_from_failures(tmp_path: Path) -> None:
    tables, conclusion = make()
    for row, status in zip(
        tables["cells"][-3:], ("diverged", "failed", "found nothing"), strict=True
    ):
        row |= {"status": status, "reason": f"because it {status}"}
    grid = Grid(read_run(write_run(tmp_path, tables, conclusion)))
    assert len(grid.failed) == 1
    assert len(grid.came_to_nothing) == 2
