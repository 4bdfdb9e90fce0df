"""The worst drift of hidden states: what Vaccine's family trains under.

    min_w  max_{||e|| <= rho}  L(w; h + e)

To first order the worst e is rho * dL/dh / ||dL/dh||, over all perturbed modules and the whole global
batch as one vector.

    drift = worst_drift(step, modules, rho)
    with step.randomness(DRIFT):
        loss = step.backward("train", around=drift.around)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from backfire.engine.primitives import EPSILON, Around, perturb

if TYPE_CHECKING:
    from torch import nn

    from backfire.engine.batching import GlobalBatch
    from backfire.engine.primitives import Step

__all__ = ["DRIFT", "Drift", "worst_drift"]

DRIFT = "drift"
"""Name of the randomness that the pass which finds the drift and the pass under it share."""


class Drift(NamedTuple):
    """A drift, and what the pass that found it saw."""

    around: Around
    """Adds the drift to the modules' outputs while a micro-batch passes."""
    clean: float
    """Mean loss without drift, in nats a token."""
    norm: float
    """||dL/dh||; under the drift the loss is about `clean` + rho * `norm`."""


def worst_drift(
    step: Step, modules: Sequence[nn.Module], rho: float, stream: str | GlobalBatch = "train"
) -> Drift:
    """Return the drift of norm rho that raises a stream's mean loss most, to first order.

    One forward and one backward pass; `.grad` is empty afterwards. The drift does not depend on how the
    batch is cut or spread over processes. Held: one fp32 number for each of the outputs' numbers.
    Source: Vaccine, arXiv 2402.01109, algorithm 1.

    Args:
        step: The optimizer step.
        modules: Whose outputs drift, all at once.
        rho: Norm of the drift, at least 0.
        stream: What to take the loss of.
    """
    with step.randomness(DRIFT):
        clean, drifts = step.activation_grads(modules, stream)
    norm = step.activation_norm(drifts)
    for part in drifts:
        for gradient in part:
            gradient *= rho / (norm + EPSILON)
    return Drift(lambda index: perturb(modules, drifts[index]), clean, norm)
