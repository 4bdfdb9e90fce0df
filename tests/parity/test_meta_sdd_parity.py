"""Meta-SDD against a straight-line version in plain torch, written from its equation.

It shares nothing with the package but token ids and which half a harmful row belongs to.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backfire.defend import MetaSDD
from backfire.defend.meta_sdd import halves
from backfire.models.load import load
from backfire.seeding import torch_generator
from straight_line import BENIGN, HARMFUL, Gradient, Plain, at, compare, save_start

LAM, REPLAY, RATE, INNER, LOST = 0.9, 0.6, 2e-3, 3, 2
RANK, ALPHA = 2, 6.0


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start") / "llama")


def plus(*gradients: Gradient) -> Gradient:
    return [sum(parts[1:], parts[0]) for parts in zip(*gradients, strict=True)]


def times(factor: float, gradient: Gradient) -> Gradient:
    return [factor * g for g in gradient]


class Adapter:
    """LoRA beside every linear layer but the head, as what its module's output is more by."""

    def __init__(self, model: torch.nn.Module, index: int) -> None:
        draw = torch_generator(0, "adapter", index)
        self.factors: list[torch.Tensor] = []
        self.handles = []
        for name, module in model.named_modules():
            if not name.endswith("_proj"):
                continue
            rows, columns = module.weight.shape  # type: ignore[misc,union-attr]
            down = torch.empty(RANK, columns).uniform_(-1, 1, generator=draw) / columns**0.5
            up = torch.zeros(rows, RANK)
            self.factors += [down.requires_grad_(), up.requires_grad_()]
            self.handles.append(
                module.register_forward_hook(
                    lambda _, given, out, a=down, b=up: out + ALPHA / RANK * (given[0] @ a.T) @ b.T
                )
            )

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize(
    ("collapse", "adapter", "hold", "every"),
    [
        ("uniform", False, None, 1),
        ("token", False, None, 1),
        ("entropy", False, None, 1),
        ("uniform", True, None, 1),
        ("unlikely", False, None, 1),
        ("uniform", False, 5.5, 1),
        ("unlikely", False, 5.5, 2),
    ],
)
def test_meta_sdd(
    collapse: str, adapter: bool, hold: float | None, every: int, start: Path, tmp_path: Path
) -> None:
    """K steps on one half and one of repair; collapse at 3 points on benign rows and the other half.

    Of an attack with an adapter: its gradients are autograd's of the factors, and the collapse's that of
    the weights with the adapter at work beside them. Held: a share of the unattacked loss on benign rows
    is taken off, in the measure of their tokens among all that collapse.
    """
    plain, chat = Plain(start), load(start).chat
    sides = [[chat.encode(row, 512) for row in half] for half in halves(HARMFUL, 0, "x")]

    def lost(rows: list[object]) -> torch.Tensor:
        places = plain.answer_of(rows)[:, 1:]
        logs = plain.logs(rows)[places]
        if collapse == "unlikely":
            right = plain.ids(rows)[:, 1:][places]
            return -(1 - logs.gather(-1, right[:, None]).exp()).log().mean()
        if collapse == "uniform":
            return -logs.mean()
        if collapse == "token":
            return -logs[:, chat.end_id].mean()
        return (logs.exp() * logs).sum(-1).mean()

    def step(index: int) -> tuple[float, Gradient]:
        answers = plain.cross_entropy(at(plain.refusal, index))
        replay = plain.cross_entropy(at(plain.benign, index))
        clean = plus(plain.slope(answers), times(REPLAY, plain.slope(replay)))
        loss = answers.item() + REPLAY * replay.item()
        if index % every:
            return loss, clean
        value, aside = collapsed(index)
        return loss + value, plus(clean, aside)

    def collapsed(index: int) -> tuple[float, Gradient]:
        turn = index // every
        k = (2, 4)[turn % 2]
        attack, held_out = sides[turn % 2], sides[1 - turn % 2]
        rows = at(plain.benign, index, LOST) + at(held_out, index, LOST)
        saved = [p.detach().clone() for p in plain.weights]
        beside = Adapter(plain.model, index) if adapter else None
        attacked = beside.factors if beside else plain.weights
        optimizer = torch.optim.AdamW(attacked, lr=RATE, weight_decay=0)
        batches = [at(attack, turn // 2 * 4 + i, INNER) for i in range(k)]
        batches.append(at(plain.benign, turn, INNER))
        value, aside = 0.0, [torch.zeros_like(p) for p in plain.weights]
        for i, batch in enumerate(batches, 1):
            optimizer.zero_grad()
            plain.cross_entropy(batch).backward()
            optimizer.step()
            if i in (k // 2, k, k + 1):
                loss = lost(rows)
                value += LAM / 3 * loss.item()
                aside = plus(aside, times(LAM / 3, plain.slope(loss)))
        if beside:
            beside.remove()
        with torch.no_grad():
            for p, s in zip(plain.weights, saved, strict=True):
                p.copy_(s)
        if hold is not None:
            helpful = at(plain.benign, index, LOST)
            here = lost(helpful)
            part = int(plain.answer_of(helpful).sum()) / int(plain.answer_of(rows).sum())
            share = min(2.0, max(0.0, 1 + hold - here.item()))
            aside = plus(aside, times(-LAM * share * part, plain.slope(here)))
        return value, aside

    plain.follow(step)
    assert len(BENIGN) == len(plain.benign)
    settings = {
        "name": "meta_sdd", "answers": "refusal", "lam": LAM, "replay": REPLAY, "collapse": collapse,
        "inner_steps": [2, 4], "inner_rates": [RATE], "inner_batch_size": INNER, "repair_steps": 1,
        "collapse_batch_size": LOST, "at": [0.5, 1.0], "hold": hold, "attack_every": every,
        "inner_lora": {"rank": RANK, "alpha": ALPHA, "rates": [RATE]} if adapter else None,
    }  # fmt: skip
    compare(MetaSDD, settings, plain, start, tmp_path)
