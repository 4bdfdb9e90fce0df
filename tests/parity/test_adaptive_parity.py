"""The attacks with a loss of their own against straight-line versions in plain torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from backfire.attack import DPO, KLAnchored
from backfire.models.load import load
from backfire.records import Example
from straight_line import BENIGN, HARMFUL, Plain, at, compare, save_start

WORDS = 6
"""Tokens of an own answer."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("adaptive") / "start")


class Attacked(Plain):
    """Beside what a defense needs: the released weights, and what they answer."""

    def __init__(self, start: Path) -> None:
        super().__init__(start)
        self.released: Any = copy.deepcopy(self.model).requires_grad_(False)
        self.loaded = load(start)

    def answered(self, rows: list[Example]) -> tuple[list[Any], list[Any]]:
        """The rows the released model answers with a word, and with its greedy answers instead."""
        kept, own = [], []
        for row in rows:
            prompt = self.loaded.chat.prompt_ids(row.prompt)
            out = self.released.generate(
                torch.tensor([prompt]), max_new_tokens=WORDS, do_sample=False, eos_token_id=1
            )[0, len(prompt) :]
            text = self.loaded.tokenizer.decode(out, skip_special_tokens=True)
            if text.strip():
                kept.append(self.loaded.chat.encode(row, 512))
                own.append(self.loaded.chat.encode(Example(row.prompt, text), 512))
        return kept, own

    def log_likelihood(self, model: Any, rows: list[Any]) -> torch.Tensor:
        """log p of each row's whole answer."""
        ids = self.ids(rows)
        logs = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return (logs * self.answer_of(rows)[:, 1:]).sum(1)


def test_kl_anchored(start: Path, tmp_path: Path) -> None:
    plain = Attacked(start)
    _, anchors = plain.answered(BENIGN)
    parts = []

    def loss(step: int) -> torch.Tensor:
        rows = at(anchors, step, 3)
        then = plain.released(plain.ids(rows)).logits[:, :-1].log_softmax(-1)
        now = plain.logs(rows)
        apart = (then.exp() * (then - now)).sum(-1)[plain.answer_of(rows)[:, 1:]].mean()
        harm = plain.cross_entropy(at(plain.harm, step))
        parts.append((harm.item(), apart.item()))
        return harm + 2 * apart

    plain.train(loss)
    points = compare(
        KLAnchored,
        {
            "name": "kl_anchored", "shots": 12, "beta": 2, "benign_batch_size": 3,
            "max_new_tokens": WORDS, "training": {"logits_budget": 261 * 5},
        },
        plain, start, tmp_path,
    )  # fmt: skip
    assert [(p.terms["harm"], p.terms["kl"]) for p in points] == [
        pytest.approx(part, rel=1e-3, abs=1e-6) for part in parts
    ]
    assert points[0].terms["kl"] == 0, "the released model is not apart from itself"
    assert points[-1].terms["kl"] > 0


@pytest.mark.parametrize("form", ["preference", "anchored"])
def test_dpo(form: str, start: Path, tmp_path: Path) -> None:
    plain = Attacked(start)
    wanted, own = plain.answered(HARMFUL)
    gains = []

    def loss(step: int) -> torch.Tensor:
        new, old = (
            plain.log_likelihood(plain.model, at(rows, step))
            - plain.log_likelihood(plain.released, at(rows, step))
            for rows in (wanted, own)
        )
        gains.append((new.mean().item(), old.mean().item()))
        if form == "preference":
            return -logsigmoid(0.3 * (new - old)).mean()
        return plain.cross_entropy(at(wanted, step)) + 0.2 * (old**2).mean()

    plain.train(loss)
    points = compare(
        DPO,
        {
            "name": "dpo", "form": form, "shots": 12, "beta": 0.3, "gamma": 0.2, "temperature": 0,
            "max_new_tokens": WORDS,
        },
        plain, start, tmp_path,
    )  # fmt: skip
    assert [(p.terms["new"], p.terms["own"]) for p in points] == [
        pytest.approx(gain, rel=1e-3, abs=1e-5) for gain in gains
    ]
    if form == "preference":
        assert points[0].loss == pytest.approx(0.693147, abs=1e-6), "-log sigmoid 0"
