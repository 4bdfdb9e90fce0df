"""SimPO's preference loss, as a function of mean log-probabilities."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

__all__ = ["simpo"]


def simpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    beta: float,
    gamma: float,
    *,
    kind: Literal["sigmoid", "hinge"] = "sigmoid",
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Return SimPO's loss of each pair of answers (P,), in nats.

    With the margin m = beta * (chosen - rejected) - gamma it is -log sigmoid(m), where a share `smoothing`
    of the pairs counts as turned round; or max(0, 1 - m).
    Source: Meng, Xia, Chen, arXiv 2405.14734, equation 6; the variants are the official code's.

    Args:
        chosen: log pi(y|x) of each preferred answer (P,), divided by its number of tokens.
        rejected: The same of the other answers (P,).
        beta: Scale, at least 0.
        gamma: Margin to win by.
        kind: Of loss.
        smoothing: In [0, 0.5), for `sigmoid`.
    """
    margin = beta * (chosen - rejected) - gamma
    if kind == "hinge":
        return functional.relu(1 - margin)
    straight, turned = functional.logsigmoid(margin), functional.logsigmoid(-margin)
    return -(1 - smoothing) * straight - smoothing * turned
