"""How alike training rows are to a model: by where they end up in it, and by where they pull it.

Source: He, Xia, Henderson 2024, arXiv 2404.01099, section 3, and the official code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from backfire.data.chat import Encoded
from backfire.engine.batching import GlobalBatch
from backfire.engine.primitives import add_, dot, global_norm

if TYPE_CHECKING:
    from backfire.engine.causal import Causal

__all__ = ["by_gradient", "by_state", "last_states"]

Note = Callable[[int], None]
"""Told how many more rows are done."""


@torch.no_grad()
def last_states(
    causal: Causal, rows: Sequence[Encoded], token_budget: int, note: Note = lambda _: None
) -> torch.Tensor:
    """Return the last hidden state of each row's last token (R, D), fp32, in the rows' order.

    Args:
        causal: In evaluation mode.
        rows: Prompts with answers.
        token_budget: Rows that go together, times the longest of them.
        note: Told of progress.
    """
    device = causal.head().weight.device
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    found: dict[int, torch.Tensor] = {}
    while order:
        width = len(rows[order[0]].ids)
        places = order[: max(1, token_budget // width)]
        order = order[len(places) :]
        ids = torch.zeros((len(places), width), dtype=torch.long)
        for line, place in enumerate(places):
            ids[line, : len(rows[place].ids)] = torch.tensor(rows[place].ids)
        states = causal.hidden(ids.to(device)).float()
        for line, place in enumerate(places):
            found[place] = states[line, len(rows[place].ids) - 1]
        note(len(places))
    return torch.stack([found[i] for i in range(len(rows))])


def by_state(states: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Return the cosine (R,) of each state (R, D) with the anchor (A, D) that is nearest to it."""
    return (normalize(states, dim=-1) @ normalize(anchors, dim=-1).T).amax(-1)


def by_gradient(
    causal: Causal,
    rows: Sequence[Encoded],
    towards: Sequence[Encoded],
    away: Sequence[Sequence[Encoded]],
    tokens: int,
    note: Note = lambda _: None,
) -> torch.Tensor:
    """Return how far each row's gradient (R,) points where some rows' gradients do, and others' do not.

    Every gradient has length 1. The score is the inner product with the mean over `towards`, less that with
    the mean over each list in `away`. One forward and one backward pass a row; holds, beside the weights,
    one gradient and one sum of gradients.

    Args:
        causal: In evaluation mode; all its weights count, and none moves.
        rows: To be scored.
        towards: To be like.
        away: Lists of rows to be unlike.
        tokens: How many tokens of each answer, from the first, the loss is a mean over.
        note: Told of progress.
    """
    parameters = list(causal.parameters())
    flags = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def pull(row: Encoded) -> tuple[list[torch.Tensor], float]:
        """Return the gradient and its length."""
        batch = GlobalBatch((replace(row, kept=tuple(row.supervised[:tokens])),))
        (part,) = batch.micro(len(row.ids))
        loss = causal.losses(part.to(parameters[0].device)).mean()
        gradient = list(torch.autograd.grad(loss, parameters, materialize_grads=True))
        return gradient, max(global_norm(gradient), 1e-12)

    try:
        way = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for sign, anchors in ((1, towards), *((-1, some) for some in away)):
            for anchor in anchors:
                gradient, length = pull(anchor)
                add_(way, gradient, sign / (length * len(anchors)))
        scores = []
        for row in rows:
            gradient, length = pull(row)
            scores.append(dot(gradient, way) / length)
            note(1)
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return torch.tensor(scores)
