"""Losses beside cross-entropy, as functions of log-probabilities and logits."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["distances", "divergence", "dpo", "entropy", "from_uniform"]


def distances(left: torch.Tensor, right: torch.Tensor, *, squared: bool = False) -> torch.Tensor:
    """Return the Euclidean distances (...) of vectors (..., D), in fp32, or their squares."""
    gap = left.float() - right.float()
    # Where two models are still one, a root has no slope; the norm's gradient there is 0.
    return gap.square().sum(-1) if squared else torch.linalg.vector_norm(gap, dim=-1)


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) (n,), in nats.

    Args:
        reference: Log-probabilities log p (n, V).
        logits: What q is the softmax of (n, V).
    """
    gap = reference - functional.log_softmax(logits, dim=-1)
    # Where p is 0 its log is -inf, and the term is 0, not the product's NaN.
    return torch.where(reference > -torch.inf, reference.exp() * gap, 0.0).sum(-1)


def dpo(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the direct preference loss of each pair of answers (P,), in nats.

    -log sigmoid(beta * (chosen - rejected)). Source: Rafailov et al. 2023, equation 7.

    Args:
        chosen: log pi(y|x) - log pi_ref(y|x) of each preferred answer (P,), summed over its tokens.
        rejected: The same of the other answers (P,).
        beta: Inverse temperature, above 0.
    """
    return -functional.logsigmoid(beta * (chosen - rejected))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy (n,), in nats, of the distributions that logits (n, V) stand for."""
    logs = functional.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(-1)


def from_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy (n,), in nats, of the uniform distribution under logits (n, V).

    mean over v of -log p_v; least, log V, where the logits are all equal.
    """
    return torch.logsumexp(logits, dim=-1) - logits.mean(-1)


def unlikelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return -log(1 - p) of each target's probability p, in nats (N).

    Args:
        logits: Float (N, V).
        targets: Integer (N).

    Source:
        Welleck et al. 2019 (arXiv 1908.04319), equation 2.
    """
    others = logits.scatter(-1, targets.unsqueeze(-1), -torch.inf)
    return logits.logsumexp(-1) - others.logsumexp(-1)
