"""Booster: what one step computes, and what training with it does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.defend import Booster
from backfire.engine.primitives import Step, add_, excursion, global_norm
from backfire.engine.rows import alignment, rows_of
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint
from by_hand import Toy, flat, gradient_of, step_of
from small_methods import DATA, bench, build


def booster(**over: Any) -> Booster:
    return Booster.model_validate({"name": "booster", **over})


@pytest.fixture
def step(tiny_folder: Path, tmp_path: Path) -> Step:
    return make(tiny_folder, tmp_path)


def make(folder: Path, place: Path, **over: Any) -> Step:
    here = bench(place)
    rows = {
        "train": alignment(here, 0, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
    }
    return step_of(folder, rows, **over)


def test_a_step_by_hand() -> None:
    """h = 2 x^2 + y^2 / 2 at (3, 4): gradient (12, 4), of norm 4 sqrt 10.

    With alpha = sqrt 10 the attacker moves by (3, 1) to (0, 3), where the gradient is (0, 3) and h 4.5.
    """
    toy = Toy(
        torch.tensor([3.0, 4.0]),
        {"harm": lambda w: 2 * w[0] ** 2 + w[1] ** 2 / 2, "train": lambda w: 5 * w[0] + 7 * w[1]},
    )
    terms = booster(lam=0.5, alpha=math.sqrt(10)).step(toy)  # type: ignore[arg-type]
    assert [name for name, _ in toy.visited] == ["harm", "harm", "train"]
    torch.testing.assert_close(
        toy.visited[1][1], torch.tensor([0.0, 3.0]).double(), atol=1e-6, rtol=0
    )
    assert toy.visited[2][1].tolist() == [3, 4]
    assert toy.parameters[0].tolist() == [3, 4]
    expected = torch.tensor([5 + 0.5 * (12 - 0), 7 + 0.5 * (4 - 3)]).double()
    torch.testing.assert_close(toy.parameters[0].grad, expected, atol=1e-6, rtol=0)
    assert terms == pytest.approx(
        {"align": 43, "harm": 26, "harm_after": 4.5, "loss": 43 + 0.5 * 21.5}, abs=1e-5
    )


def test_the_weights_stay_bit_for_bit(step: Step) -> None:
    before = [p.detach().clone() for p in step.parameters]
    booster(alpha=0.7).step(step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert (step.passes.forwards, step.passes.backwards) == (3, 3)


@pytest.mark.parametrize("rho", [0.5, 5.0])
def test_under_drift_it_takes_four_passes(step: Step, rho: float) -> None:
    plain, drifted = booster(), booster(perturb=rho)
    without = plain.step(step)
    clean = gradient_of(step)
    step.clear()
    step.passes.forwards = step.passes.backwards = 0
    under = drifted.step(step)
    assert (step.passes.forwards, step.passes.backwards) == (4, 4)
    assert under["align"] > without["align"], "the drift is the worst one"
    assert under["harm"] == without["harm"]
    assert not torch.allclose(clean, gradient_of(step))


def test_the_attenuation_tends_to_curvature_times_direction(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """(grad h(w) - grad h(w')) / alpha -> H g / ||g||, by double backward in fp64; error O(alpha)."""
    step = make(tiny_folder, tmp_path, double=True)
    harm = step.causal.losses(*step.batches["harm"].micro(4096)).mean()
    slopes = torch.autograd.grad(harm, step.parameters, create_graph=True)
    length = float(flat(slopes).norm())
    steepest = [g.detach() / length for g in slopes]
    inner = sum((g * d).sum() for g, d in zip(slopes, steepest, strict=True))
    exact = flat(torch.autograd.grad(inner, step.parameters))  # type: ignore[arg-type]

    def estimate(alpha: float) -> torch.Tensor:
        step.clear()
        booster(lam=0, alpha=alpha).step(step)
        aligned = gradient_of(step)
        step.clear()
        booster(lam=1, alpha=alpha).step(step)
        return (gradient_of(step) - aligned) / alpha

    errors = [float((estimate(a) - exact).norm() / exact.norm()) for a in (1e-2, 1e-3)]
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("budget", [8, 60])
def test_the_cut_into_micro_batches_does_not_matter(
    tiny_folder: Path, tmp_path: Path, budget: int
) -> None:
    whole = make(tiny_folder, tmp_path, double=True)
    parts = make(tiny_folder, tmp_path, double=True, token_budget=budget)
    assert len(parts.batches["harm"].micro(budget)) > 1
    for step in (whole, parts):
        booster(perturb=1.0).step(step)
    torch.testing.assert_close(gradient_of(parts), gradient_of(whole), atol=1e-6, rtol=1e-6)


def test_dropout_masks_are_shared_by_the_harmful_passes(tmp_path: Path) -> None:
    """With alpha 0 the two harmful gradients cancel, though the model drops a tenth of its units."""
    step = make(save_tiny(tmp_path / "gpt2", "gpt2"), tmp_path)
    torch.manual_seed(1)
    booster(alpha=0).step(step)
    with_harm = gradient_of(step)
    step.clear()
    torch.manual_seed(1)
    step.backward("train")
    assert torch.equal(with_harm, gradient_of(step)), "nor do they move the alignment's masks"
    with step.randomness("another"):
        other, _ = step.grads("train")
    step.clear()
    assert other != pytest.approx(step.loss("train"), abs=1e-9)


def test_training_leaves_an_attackers_step_less_to_gain(tiny_folder: Path, tmp_path: Path) -> None:
    gains = {}
    for lam in (0.0, 5.0):
        member = build(
            Booster, lam=lam, benign_share=0, training={"steps": 30, "learning_rate": 3e-3}
        )
        place = tmp_path / str(lam)
        made = member(Checkpoint(tiny_folder, "k"), bench(place))
        step = make(made.path, place, batch_size=10)
        before, gradient = step.grads("harm")
        with excursion(step.parameters):
            add_(step.parameters, gradient, -0.1 / global_norm(gradient))
            gains[lam] = before - step.loss("harm")
    assert gains[5.0] < gains[0.0]


def test_alignment_rows_are_refusals_and_a_share_of_help(tmp_path: Path) -> None:
    rows = alignment(bench(tmp_path), 0.5, "x")
    assert sum(row.response == DATA["defense"][0].refusal for row in rows) == 10
    assert len(rows) == 20
    assert booster(benign_share=0.5).rows_used({"defense": 10, "pool": 12, "defender_harm": 7}) == {
        "defense": 10,
        "defender_harm": 7,
        "pool": 10,
    }
