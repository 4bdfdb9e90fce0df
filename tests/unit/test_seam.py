"""SEAM: its estimator against second derivatives, its masks, and what training with it does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.data.chat import Encoded
from backfire.defend import SEAM
from backfire.engine.batching import GlobalBatch, as_text, difference
from backfire.engine.primitives import Step, add_, excursion
from backfire.engine.rows import refusals, rows_of
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.records import Checkpoint
from by_hand import Toy, flat, gradient_of, step_of
from small_methods import DATA, bench, build

ONLY_COSINE = {"unlearn": 0, "alpha": 0, "beta": 1}


def seam(**over: Any) -> SEAM:
    return SEAM.model_validate({"name": "seam", **over})


def make(folder: Path, place: Path, data: Any = DATA, **over: Any) -> Step:
    here = bench(place, data=data)
    rows = {
        "train": refusals(here, "defender_harm", None, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
        "benign": rows_of(here, "pool", None, "x"),
    }
    return step_of(folder, rows, together=("harm",), **over)


class SmoothToy(Toy):
    """Harmful and benign losses with curvature; SEAM's batches are the streams' names."""

    def __init__(self) -> None:
        super().__init__(
            torch.tensor([0.3, -0.7, 1.1]),
            {
                "train": lambda w: w.sum(),
                "harm": lambda w: (w[0] * w[1]).sin() + (0.5 * w[2]).exp() + w[0] ** 3,
                "benign": lambda w: (w[1] * w[2]).cos() + w[0] * w[2] ** 2,
            },
        )


def test_directions_by_hand() -> None:
    """Benign is taken again along a^ - c b^, harm along b^ - c a^; each is orthogonal to the other's
    gradient, and eps sqrt(1 - c^2) long."""
    toy = SmoothToy()
    terms = seam(**ONLY_COSINE, epsilon=1e-3, mask="answer", benign_text=False).step(toy)  # type: ignore[arg-type]
    start = toy.at.double().requires_grad_()
    slopes = {
        name: torch.autograd.grad(toy.losses[name](start), start)[0] for name in ("harm", "benign")
    }
    a, b = (slopes[name] / slopes[name].norm() for name in ("harm", "benign"))
    cosine = float(a @ b)
    assert terms["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert [n for n, _ in toy.visited] == ["harm", "benign", "harm", "benign", "harm", "train"]
    moved = {name: (at - start.detach()) / 1e-3 for name, at in toy.visited[3:5]}
    torch.testing.assert_close(moved["benign"], a - cosine * b, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved["harm"], b - cosine * a, atol=1e-5, rtol=0)
    assert float(moved["benign"] @ b) == pytest.approx(0, abs=1e-5)
    assert float(moved["harm"] @ a) == pytest.approx(0, abs=1e-5)
    for direction in moved.values():
        assert float(direction @ direction) == pytest.approx(1 - cosine**2, abs=1e-5)
    assert toy.parameters[0].detach().equal(start.detach())


def test_the_estimator_tends_to_the_cosines_gradient(tmp_path: Path) -> None:
    """Against double backward in fp64 through GPT-2, which computes nothing in fp32 on its own."""
    step = make(save_tiny(tmp_path / "model", "gpt2"), tmp_path, double=True)
    step.causal.eval()

    def slopes(batch: Any) -> list[torch.Tensor]:
        loss = step.causal.losses(*batch.micro(4096)).mean()
        return list(torch.autograd.grad(loss, step.parameters, create_graph=True))

    harmful = difference(step.batches["harm"], step.batches["train"])
    a, b = slopes(harmful), slopes(as_text(step.batches["benign"]))
    inner = sum((x * y).sum() for x, y in zip(a, b, strict=True))
    length = [torch.stack([(t**2).sum() for t in g]).sum().sqrt() for g in (a, b)]
    cosine = inner / (length[0] * length[1])
    exact = flat(torch.autograd.grad(cosine, step.parameters))

    def error(epsilon: float) -> float:
        step.clear()
        assert seam(**ONLY_COSINE, epsilon=epsilon).step(step)["cosine"] == pytest.approx(
            cosine.item(), abs=1e-6
        )
        return float((gradient_of(step) - exact).norm() / exact.norm())

    coarse, fine = error(1e-3), error(1e-4)
    assert fine < 1e-3
    assert coarse / fine == pytest.approx(10, rel=0.2)


def test_swapping_the_directions_would_be_wrong() -> None:
    """The check above can fail: with the two displacements swapped the error does not vanish."""
    toy = SmoothToy()
    start = toy.at.double().requires_grad_()
    a, b = (
        torch.autograd.grad(toy.losses[name](start), start, create_graph=True)[0]
        for name in ("harm", "benign")
    )
    (exact,) = torch.autograd.grad(a @ b / (a.norm() * b.norm()), start)
    seam(**ONLY_COSINE, epsilon=1e-5, mask="answer", benign_text=False).step(toy)  # type: ignore[arg-type]
    torch.testing.assert_close(toy.parameters[0].grad, exact, atol=1e-4, rtol=1e-3)

    def slope(name: str, at: torch.Tensor) -> torch.Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(toy.losses[name](at), at)[0]

    with torch.no_grad():
        x, y = a / a.norm(), b / b.norm()
        c = float(x @ y)
    swapped = (slope("benign", start + 1e-5 * (y - c * x)) - b) / b.norm()
    swapped = (swapped + (slope("harm", start + 1e-5 * (x - c * y)) - a) / a.norm()) / 1e-5
    assert float((swapped - exact).detach().norm() / exact.norm()) > 0.1


def test_a_mask_by_hand() -> None:
    """Ids 5 6 are the prompt. At place 3 both answers have 8, so neither learns it there; the longer
    answer goes on alone."""
    harmful = GlobalBatch((Encoded([5, 6, 7, 8, 9, 1], 2, False),))
    refusal = GlobalBatch((Encoded([5, 6, 4, 8, 1], 2, False),))
    assert difference(harmful, refusal).rows[0].supervised == (2, 4, 5)
    assert difference(refusal, harmful).rows[0].supervised == (2, 4)
    assert difference(harmful, harmful).supervised == 0
    assert list(as_text(refusal).rows[0].supervised) == [1, 2, 3, 4]


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma2"])
def test_unlearning_reads_every_hidden_state(
    tmp_path: Path, architecture: str, compat: bool
) -> None:
    """S from the hidden states the library itself gives; its gradient with the factor -1 / (1 + S)."""
    assert architecture in ARCHITECTURES
    step = make(save_tiny(tmp_path / "model", architecture), tmp_path, double=True)
    step.causal.eval()
    terms = seam(alpha=0, beta=0, compat=compat).step(step)
    causal, kept = step.causal, difference(step.batches["harm"], step.batches["train"])
    sums = []
    for row in kept.rows:
        states = causal.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        places, targets = (
            torch.tensor(row.supervised) - 1,
            torch.tensor(row.ids)[list(row.supervised)],
        )

        def loss(state: torch.Tensor, places: Any = places, targets: Any = targets) -> torch.Tensor:
            return (
                -causal.logits(state[0, places]).log_softmax(-1).gather(1, targets[:, None]).sum()
            )

        norm = causal.final_norm
        last = norm(states[-1]) if compat else states[-1]
        sums.append(loss(states[-1]) + loss(last) + sum(loss(norm(s)) for s in states[:-1]))
    surprise = sum(sums) / (len(states) * kept.supervised)
    assert terms["unlearn"] == pytest.approx(-math.log1p(surprise.item()), abs=1e-6)
    exact = torch.autograd.grad(-torch.log1p(surprise), step.parameters)
    torch.testing.assert_close(gradient_of(step), flat(exact), atol=1e-7, rtol=1e-5)


def test_the_weights_stay_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    step = make(tiny_folder, tmp_path)
    before = [p.detach().clone() for p in step.parameters]
    terms = seam().step(step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert (step.passes.forwards, step.passes.backwards) == (6, 6)
    assert terms["loss"] == pytest.approx(
        terms["unlearn"] + terms["refusal"] + 0.01 * terms["cosine"], abs=1e-6
    )


def test_the_cut_into_micro_batches_does_not_matter(tiny_folder: Path, tmp_path: Path) -> None:
    whole = make(tiny_folder, tmp_path, double=True)
    parts = make(tiny_folder, tmp_path, double=True, token_budget=8)
    for step in (whole, parts):
        seam(beta=1).step(step)
    torch.testing.assert_close(gradient_of(parts), gradient_of(whole), atol=1e-5, rtol=1e-4)


def test_dropout_masks_are_shared_by_passes_whose_difference_counts(tmp_path: Path) -> None:
    """Else the difference of two masks, over epsilon, would be most of the gradient."""
    folder = save_tiny(tmp_path / "gpt2", "gpt2")  # its configuration has dropout 0.1
    found = []
    for epsilon in (1e-2, 1e-3):
        step = make(folder, tmp_path, double=True)
        seam(**ONLY_COSINE, epsilon=epsilon).step(step)
        found.append(gradient_of(step))
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


def test_equal_answers_leave_nothing_to_learn(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [replace(row, refusal=row.response) for row in DATA["defender_harm"]]
    step = make(tiny_folder, tmp_path, data={**DATA, "defender_harm": rows})
    terms = seam().step(step)
    assert terms["refusal"] == terms["unlearn"] == terms["cosine"] == 0
    assert bool(gradient_of(step).isfinite().all())
    assert float(gradient_of(step).norm()) < 1e-3


def test_descent_on_the_cosine_lowers_it(tiny_folder: Path, tmp_path: Path) -> None:
    step = make(tiny_folder, tmp_path, batch_size=10)
    seen = []
    for _ in range(8):
        step.clear()
        seen.append(seam(**ONLY_COSINE).step(step)["cosine"])
        with torch.no_grad():
            for parameter in step.parameters:
                parameter -= 0.1 * parameter.grad
    assert seen[-1] < seen[0] - 0.05


def test_descent_on_unlearning_raises_the_harmful_loss(tiny_folder: Path, tmp_path: Path) -> None:
    step = make(tiny_folder, tmp_path, batch_size=10)
    seen = []
    for _ in range(5):
        step.clear()
        seen.append(seam(alpha=0, beta=0).step(step)["harm"])
        with torch.no_grad():
            for parameter in step.parameters:
                parameter -= 0.1 * parameter.grad
    assert seen == sorted(seen)
    assert seen[-1] > seen[0] + 0.1


def test_after_training_a_harmful_step_hurts_benign_use_more(
    tiny_folder: Path, tmp_path: Path
) -> None:
    rises = {}
    training = {"steps": 20, "learning_rate": 3e-3}
    for beta in (0, 1):
        member = build(SEAM, unlearn=0, beta=beta, training=training)
        made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path / str(beta)))
        step = make(made.path, tmp_path / str(beta), batch_size=10)
        _, harmful = step.grads("harm")
        before = step.loss("benign")
        with excursion(step.parameters):
            add_(step.parameters, harmful, -0.02)
            rises[beta] = step.loss("benign") - before
    assert rises[0] < 0 < rises[1], rises


def test_rows_of_another_prompt_do_not_pair(tiny_folder: Path, tmp_path: Path) -> None:
    """Refusals and harmful answers go together whatever the order of a step."""
    for index in range(4):
        step = make(tiny_folder, tmp_path, index=index, batch_size=3)
        for one, two in zip(step.batches["train"].rows, step.batches["harm"].rows, strict=True):
            assert one.ids[: one.start] == two.ids[: two.start]
