"""Gradients under the worst drift of hidden states: what Vaccine's family shares.

    min_w  max_{||e|| <= rho}  L(w; h + e)

To first order the worst e is rho * dL/dh / ||dL/dh||, over all perturbed modules and the whole global
batch as one vector. Two passes over the same batch find it and take the gradient under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from backfire.engine.primitives import EPSILON, perturb

if TYPE_CHECKING:
    from torch import nn

    from backfire.engine.batching import GlobalBatch
    from backfire.engine.primitives import Step

__all__ = ["Drift", "backward_under_drift"]


class Drift(NamedTuple):
    """What the two passes saw."""

    clean: float
    """Mean loss without drift, in nats a token."""
    drifted: float
    """Mean loss under it."""
    norm: float
    """||dL/dh||, so that drifted is about clean + rho * norm."""


def backward_under_drift(
    step: Step, modules: Sequence[nn.Module], rho: float, stream: str | GlobalBatch = "train"
) -> Drift:
    """Put the gradient of a stream's mean loss under the worst drift into `.grad`, which it empties before.

    Two forward and two backward passes, which share dropout masks. The drift does not depend on how the
    batch is cut or spread over processes. Holds an activation-sized fp32 tensor a module and token.
    Source: Vaccine, arXiv 2402.01109, algorithm 1.

    Args:
        step: The optimizer step.
        modules: Whose outputs drift, all at once.
        rho: Norm of the drift, at least 0.
        stream: What to take the loss of.
    """
    with step.randomness("drift"):
        clean, drifts = step.activation_grads(modules, stream)
    norm = step.activation_norm(drifts)
    for part in drifts:
        for gradient in part:
            gradient *= rho / (norm + EPSILON)
    with step.randomness("drift"):
        drifted = step.backward(stream, around=lambda index: perturb(modules, drifts[index]))
    return Drift(clean, drifted, norm)
