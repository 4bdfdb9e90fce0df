"""Losses beside cross-entropy, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from backfire.numerics.losses import distances, dpo, entropy, from_uniform, unlikelihood


def test_dpo_by_hand() -> None:
    """Gains 3 and 1 with beta 0.5 make a margin of 1; equal gains cost log 2."""
    chosen, rejected = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    expected = torch.tensor([math.log(1 + math.exp(-1)), math.log(2)])
    torch.testing.assert_close(dpo(chosen, rejected, 0.5), expected)
    assert dpo(rejected, chosen, 0.5)[0] == pytest.approx(math.log(1 + math.e))


def test_dpo_only_sees_the_difference() -> None:
    chosen, rejected = torch.randn(5).double(), torch.randn(5).double()
    torch.testing.assert_close(
        dpo(chosen + 7, rejected + 7, 0.1), dpo(chosen, rejected, 0.1), atol=1e-12, rtol=0
    )


def test_entropy_by_hand() -> None:
    """Even over four: log 4. Halves and quarters: 1.5 log 2. One sure token: 0, with a finite slope."""
    logits = torch.tensor([[0.0, 0, 0, 0], [2, 1, 1, -1e9], [1e4, 0, 0, 0]])
    logits[1, :3] *= math.log(2)
    logits.requires_grad_()
    found = entropy(logits)
    torch.testing.assert_close(found, torch.tensor([math.log(4), 1.5 * math.log(2), 0.0]))
    found.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_unlikelihood_by_hand() -> None:
    """Of probability 3/4: log 4. Where the token is sure the loss is large, and its slope is finite."""
    logits = torch.tensor([[math.log(6), 0.0, 0.0], [40.0, 0.0, 0.0]], requires_grad=True)
    found = unlikelihood(logits, torch.tensor([0, 0]))
    torch.testing.assert_close(found, torch.tensor([math.log(4), 40 - math.log(2)]))
    found.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad, torch.tensor([[0.75, -0.375, -0.375], [1.0, -0.5, -0.5]])
    )


def test_distances_by_hand() -> None:
    left = torch.tensor([[3.0, 4.0], [1.0, 1.0]], requires_grad=True)
    right = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert distances(left, right).tolist() == [5, 0]
    assert distances(left, right, squared=True).tolist() == [25, 0]
    distances(left, right).sum().backward()
    assert left.grad is not None
    torch.testing.assert_close(left.grad, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_cross_entropy_to_uniform_by_hand() -> None:
    """p = (1/4, 3/4): half of log 4 and half of log 4/3; equal logits give log V, whatever they are."""
    found = from_uniform(torch.tensor([[0.0, math.log(3)], [7.0, 7.0]]))
    torch.testing.assert_close(
        found, torch.tensor([(math.log(4) + math.log(4 / 3)) / 2, math.log(2)])
    )
