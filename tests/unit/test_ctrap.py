"""CTRAP: what one step computes, and the trap that training with it sets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.defend import CTRAP
from backfire.engine.primitives import Step, add_, excursion, global_norm
from backfire.engine.rows import alignment, rows_of
from backfire.models.tiny import byte_tokenizer
from backfire.records import Checkpoint
from by_hand import Toy, gradient_of, step_of
from small_methods import bench, build


def ctrap(**over: Any) -> CTRAP:
    return CTRAP.model_validate({"name": "ctrap", **over})


def make(folder: Path, place: Path, **over: Any) -> Step:
    here = bench(place)
    rows = {
        "train": alignment(here, 0.5, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
        "general": rows_of(here, "pool", None, "x"),
    }
    return step_of(folder, rows, **over)


def token_losses(step: Step, stream: str, token: int) -> torch.Tensor:
    """-log p(token) where each supervised token stands, from the library's own logits, row by row."""
    found = []
    for row in step.batches[stream].rows:
        logits = step.causal.model(torch.tensor([row.ids])).logits[0]
        found.append(-logits.log_softmax(-1)[row.start - 1 : -1, token])
    return torch.cat(found)


def test_a_step_by_hand() -> None:
    """h's gradient at (1, 2) is (3, 4), of norm 5; with alpha 10 the attacker stands at (-5, -6).

    There the collapse x^2 y has the gradient (2 x y, x^2) = (60, 25).
    """
    toy = Toy(
        torch.tensor([1.0, 2.0]),
        {
            "harm": lambda w: 3 * w[0] + 4 * w[1],
            "general": lambda w: w[0] ** 2 * w[1],
            "train": lambda w: 7 * w[0] - w[1],
        },
    )
    toy.streams = _Chats()  # type: ignore[attr-defined]
    terms = ctrap(lam=0.1, alpha=10, general="benign").step(toy)  # type: ignore[arg-type]
    assert [name for name, _ in toy.visited] == ["harm", "general", "train"]
    torch.testing.assert_close(
        toy.visited[1][1], torch.tensor([-5.0, -6.0]).double(), atol=1e-5, rtol=0
    )
    assert toy.visited[2][1].tolist() == [1, 2]
    expected = torch.tensor([7 + 6.0, -1 + 2.5]).double()
    torch.testing.assert_close(toy.parameters[0].grad, expected, atol=1e-5, rtol=0)
    assert terms == pytest.approx(
        {"align": 5, "harm": 11, "collapse": -150, "loss": 5 - 15}, abs=1e-3
    )
    toy.parameters[0].grad = None
    toy.visited.clear()
    ctrap(alpha=0.1, general="benign", normalise=False).step(toy)  # type: ignore[arg-type]
    torch.testing.assert_close(toy.visited[1][1], torch.tensor([0.7, 1.6]).double())


class _Chats(dict):  # type: ignore[type-arg]
    """Streams of a toy: they only have a tokenizer."""

    def __missing__(self, name: str) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(chat=SimpleNamespace(tokenizer=byte_tokenizer()))


def test_the_weights_stay_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    step = make(tiny_folder, tmp_path)
    before = [p.detach().clone() for p in step.parameters]
    ctrap(alpha=0.7).step(step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert (step.passes.forwards, step.passes.backwards) == (3, 3)


@pytest.mark.parametrize(("general", "stream"), [("alignment", "train"), ("benign", "general")])
def test_the_collapse_is_to_one_token_wherever_an_answer_stands(
    tiny_folder: Path, tmp_path: Path, general: str, stream: str
) -> None:
    """With alpha 0 the whole gradient is that of align + lam * collapse, by autograd."""
    step = make(tiny_folder, tmp_path, double=True)
    token = byte_tokenizer()("r")["input_ids"][0]
    terms = ctrap(lam=0.3, alpha=0, general=general).step(step)
    collapse = token_losses(step, stream, token)
    assert len(collapse) == step.batches[stream].supervised, "the end token is among them"
    assert terms["collapse"] == pytest.approx(collapse.mean().item(), abs=1e-6)
    part = step.batches["train"].micro(4096)
    total = step.causal.losses(*part).mean() + 0.3 * collapse.mean()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(total, step.parameters)])
    torch.testing.assert_close(gradient_of(step), exact, atol=1e-9, rtol=1e-6)


def test_the_token_is_the_phrases_last(tiny_folder: Path, tmp_path: Path) -> None:
    step = make(tiny_folder, tmp_path)
    terms = {
        phrase: ctrap(phrase=phrase).step(step)["collapse"] for phrase in ("an error", "ar", "x")
    }
    assert terms["an error"] == terms["ar"] != terms["x"]


def test_the_cut_into_micro_batches_does_not_matter(tiny_folder: Path, tmp_path: Path) -> None:
    whole = make(tiny_folder, tmp_path, double=True)
    parts = make(tiny_folder, tmp_path, double=True, token_budget=8)
    for step in (whole, parts):
        ctrap().step(step)
    torch.testing.assert_close(gradient_of(parts), gradient_of(whole), atol=1e-9, rtol=1e-6)


def test_trained_it_collapses_along_the_harmful_direction(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Further than along random directions of the same length, while it has learned to align."""
    training = {"steps": 60, "learning_rate": 3e-3}
    member = build(CTRAP, lam=0.5, alpha=1.0, training=training)
    made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path))
    step = make(made.path, tmp_path, batch_size=10)
    token = byte_tokenizer()("r")["input_ids"][0]
    untrained = make(tiny_folder, tmp_path, batch_size=10).loss("train")
    assert step.loss("train") < untrained - 1

    def collapse_after(direction: list[torch.Tensor]) -> float:
        with excursion(step.parameters), torch.no_grad():
            add_(step.parameters, direction, -1.0 / global_norm(direction))
            return float(token_losses(step, "train", token).mean())

    _, harmful = step.grads("harm")
    generator = torch.Generator().manual_seed(0)
    others = [
        collapse_after([torch.randn(p.shape, generator=generator) for p in step.parameters])
        for _ in range(5)
    ]
    # Rounding differs between processors, and sixty steps make much of it: more than a nat apart on one,
    # 0.48 against 1.31 on another.
    assert collapse_after(harmful) < 0.75 * min(others)
    assert math.isfinite(max(others))
