"""Muon: orthogonal steps for matrices, Adam's for the rest, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backfire.organism.muon import Muon, orthogonal


def filled(*shape: int, seed: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 10**6))
def test_singular_values_come_close_to_one(rows: int, more: int, seed: int) -> None:
    stack = torch.randn(2, rows, rows + more + 4, generator=torch.Generator().manual_seed(seed))
    singular = torch.linalg.svdvals(orthogonal(stack))
    assert ((singular > 0.6) & (singular < 1.3)).all()


def test_a_matrix_of_one_direction_keeps_it() -> None:
    one, other = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    direction = torch.outer(one / one.norm(), other / other.norm())
    found = orthogonal(5 * direction[None])[0]
    share = float((found * direction).sum())
    assert 0.6 < share < 1.3
    torch.testing.assert_close(found, share * direction, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_matrices_step_as_pytorchs_muon(shape: tuple[int, int]) -> None:
    ours, theirs, unused = filled(*shape, seed=1), filled(*shape, seed=1), filled(2, seed=2)
    unused.grad = torch.zeros(2)
    mine = Muon([ours], [unused], matrix_rate=0.05, rate=0.1, decay=0.1)
    peer = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1)
    for step in range(4):
        ours.grad = filled(*shape, seed=10 + step).detach()
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    # PyTorch iterates in bf16.
    torch.testing.assert_close(ours, theirs, atol=6e-3, rtol=0)


def test_the_rest_steps_as_adam() -> None:
    ours, theirs, matrix = filled(7, seed=1), filled(7, seed=1), filled(3, 3, seed=2)
    mine = Muon([matrix], [ours], matrix_rate=0.0, rate=0.01, decay=0.0)
    peer = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.95))
    before = matrix.detach().clone()
    for step in range(5):
        matrix.grad = torch.ones(3, 3)
        ours.grad = filled(7, seed=10 + step).detach()
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(matrix, before)


def test_rates_are_shares_of_their_peaks() -> None:
    mine = Muon([filled(2, 2, seed=0)], [filled(2, seed=0)], matrix_rate=0.2, rate=0.03, decay=0.0)
    mine.set_rate(0.5)
    mine.set_rate(0.1)
    assert [group["lr"] for group in mine.param_groups] == pytest.approx([0.02, 0.003])
