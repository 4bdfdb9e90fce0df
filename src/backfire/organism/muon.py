"""Muon: steps along the orthogonal part of a matrix's momentum.

A small network learns facts from several times fewer readings with it than with AdamW (docs/log.md):
the rare directions of a gradient, which single facts are, are stepped as far as the common ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["Muon", "orthogonal"]

_MOMENTUM = 0.95
_BETAS = (0.9, 0.95)
_EPS = 1e-8


class Muon(torch.optim.Optimizer):
    """Muon for the matrices, Adam for everything else.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; step sizes of
    tall matrices, Nesterov momentum and the iteration's coefficients are theirs. torch.optim.Muon does
    the same one matrix at a time and in bf16, which is several times slower on a CPU.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        matrix_rate: float,
        rate: float,
        decay: float,
    ) -> None:
        """Take over the parameters.

        Args:
            matrices: Weights of hidden layers.
            others: Embeddings, norms.
            matrix_rate: Peak rate of the matrices: each step's spectral norm (1 in a square matrix).
            rate: Peak rate of the others.
            decay: Weight decay of the matrices, times the rate; the others have none.
        """
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        groups: list[dict[str, Any]] = [
            {"params": alike, "lr": matrix_rate, "decay": decay, "matrices": True}
            for alike in by_shape.values()
        ]
        groups.append({"params": list(others), "lr": rate, "decay": 0.0, "matrices": False})
        super().__init__(groups, {})
        self._peaks = [group["lr"] for group in groups]

    def set_rate(self, share: float) -> None:
        """Set every rate to a share of its peak."""
        for group, peak in zip(self.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients.

        Args:
            closure: None; there is no line search.
        """
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group["params"], group["lr"], group["decay"])
            else:
                for parameter in group["params"]:
                    self._step_adam(parameter, group["lr"])

    def _step_matrices(self, alike: list[nn.Parameter], rate: float, decay: float) -> None:
        directions = []
        for matrix in alike:
            gradient = matrix.grad
            if gradient is None:
                raise ValueError("a matrix has no gradient; run backward first")
            state = self.state[matrix]
            momentum = state.setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            ahead = gradient.lerp(momentum, _MOMENTUM)
            directions.append(ahead.mT if matrix.shape[0] > matrix.shape[1] else ahead)
        for matrix, direction in zip(alike, orthogonal(torch.stack(directions)), strict=True):
            tall = matrix.shape[0] > matrix.shape[1]
            longer = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - rate * decay)
            matrix.add_(direction.mT if tall else direction, alpha=-rate * longer)

    def _step_adam(self, parameter: nn.Parameter, rate: float) -> None:
        gradient = parameter.grad
        if gradient is None:
            raise ValueError("a parameter has no gradient; run backward first")
        state = self.state[parameter]
        if not state:
            state |= {
                "step": torch.tensor(0.0),
                "mean": torch.zeros_like(parameter),
                "square": torch.zeros_like(parameter),
            }
        state["step"] += 1
        step = float(state["step"])
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        root = (state["square"] / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPS)
        parameter.addcdiv_(state["mean"], root, value=-rate / (1 - _BETAS[0] ** step))


def orthogonal(stack: torch.Tensor) -> torch.Tensor:
    """Return matrices (N, R, C), R <= C, with all singular values moved close to 1.

    Five steps of a Newton-Schulz iteration, whose fixed interval is about [0.7, 1.2].

    Args:
        stack: Matrices of one shape.
    """
    x: torch.Tensor = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        poly = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, poly, x, beta=3.4445)
    return x
