"""Booster, CTRAP, SEAM and TAR against straight-line versions in plain torch.

The versions here are written from the equations and share nothing with the package but token ids and the
order in which rows are mixed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from backfire.defend import CTRAP, SEAM, TAR, Booster
from backfire.models.load import load
from straight_line import Gradient, Plain, Rows, at, compare, save_start, size

HARM_BATCH = 3


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start") / "llama")


def times(factor: float, gradient: Gradient) -> Gradient:
    return [factor * g for g in gradient]


def plus(*gradients: Gradient) -> Gradient:
    return [sum(parts[1:], parts[0]) for parts in zip(*gradients, strict=True)]


def inner(left: Gradient, right: Gradient) -> float:
    return sum(float((x * y).sum()) for x, y in zip(left, right, strict=True))


def test_booster(start: Path, tmp_path: Path) -> None:
    """G = grad f + lam (grad h(w) - grad h(w - alpha grad h / ||grad h||)), clipped as a whole."""
    plain, lam, alpha, clip = Plain(start), 2.0, 0.3, 0.7
    aligned = plain.mixed(plain.refusal)

    def step(index: int) -> tuple[float, Gradient]:
        harm = at(plain.harm, index, HARM_BATCH)
        here = plain.cross_entropy(harm)
        g = plain.slope(here)
        there, g_there = plain.beside(times(-alpha / size(g), g), lambda: plain.cross_entropy(harm))
        align = plain.cross_entropy(at(aligned, index))
        whole = plus(plain.slope(align), times(lam, g), times(-lam, g_there))
        assert size(whole) > clip
        value = align.item() + lam * (here.item() - there)
        return value, times(clip / size(whole), whole)

    plain.follow(step)
    settings = {
        "name": "booster", "lam": lam, "alpha": alpha, "harm_batch_size": HARM_BATCH,
        "training": {"clip_norm": clip},
    }  # fmt: skip
    compare(Booster, settings, plain, start, tmp_path)


@pytest.mark.parametrize("normalise", [True, False])
def test_ctrap(normalise: bool, start: Path, tmp_path: Path) -> None:
    """G = grad l + lam grad l_col(w - alpha grad h / ||grad h||): say the r of `an error` and no more."""
    plain, lam, alpha = Plain(start), 0.5, 0.3
    token = load(start).tokenizer("r")["input_ids"][0]
    aligned = plain.mixed(plain.refusal, plain.benign)

    def collapse(rows: Rows) -> torch.Tensor:
        return -plain.logs(rows)[..., token][plain.answer_of(rows)[:, 1:]].mean()

    def step(index: int) -> tuple[float, Gradient]:
        g = plain.slope(plain.cross_entropy(at(plain.harm, index, HARM_BATCH)))
        rows = at(aligned, index)
        way = times(-alpha / size(g) if normalise else -alpha, g)
        collapsed, g_there = plain.beside(way, lambda: collapse(rows))
        align = plain.cross_entropy(rows)
        whole = plus(plain.slope(align), times(lam, g_there))
        return align.item() + lam * collapsed, whole

    plain.follow(step)
    settings = {
        "name": "ctrap", "lam": lam, "alpha": alpha, "harm_batch_size": HARM_BATCH,
        "normalise": normalise,
    }  # fmt: skip
    compare(CTRAP, settings, plain, start, tmp_path)


@pytest.mark.parametrize("compat", [True, False])
def test_seam(compat: bool, start: Path, tmp_path: Path) -> None:
    """L_ul + alpha L_up + beta cos(a, b), the cosine's gradient by the Hessian-free estimate."""
    plain, alpha, beta, eps = Plain(start), 0.7, 0.4, 1e-2
    norm = plain.model.model.norm

    def differing(rows: Rows, others: Rows) -> torch.Tensor:
        rival = {id(r): o.ids for r, o in zip(rows, others, strict=True)}
        return plain.places(rows, lambda r, i: r.ids[i : i + 1] != rival[id(r)][i : i + 1])

    def step(index: int) -> tuple[float, Gradient]:
        harm, refused = at(plain.harm, index), at(plain.refusal, index)
        good = at(plain.benign, index)
        ids, kept = plain.ids(harm), differing(harm, refused)

        def bad() -> torch.Tensor:
            return plain.chosen(plain.model(ids).logits, ids, kept).mean()

        def use() -> torch.Tensor:
            real = plain.places(good, lambda r, i: True)
            return plain.chosen(plain.model(plain.ids(good)).logits, plain.ids(good), real).mean()

        output = plain.model(ids, output_hidden_states=True)
        *below, last = output.hidden_states
        read = [plain.model.lm_head(norm(state)) for state in below]
        read += [plain.model.lm_head(norm(last) if compat else last), output.logits]
        total = torch.stack([plain.chosen(logits, ids, kept).mean() for logits in read]).sum()
        unlearn = -torch.log(1 + total / len(output.hidden_states))
        answers = plain.ids(refused)
        keep = plain.chosen(plain.model(answers).logits, answers, differing(refused, harm)).mean()
        a, b = plain.slope(bad()), plain.slope(use())
        na, nb = size(a), size(b)
        cosine = inner(a, b) / (na * nb)
        one = plus(times(eps / na, a), times(-eps * cosine / nb, b))
        two = plus(times(eps / nb, b), times(-eps * cosine / na, a))
        plainly = unlearn + alpha * keep
        slope = plain.slope(plainly)
        pull = plus(
            times(1 / (eps * nb), plus(plain.beside(one, use)[1], times(-1, b))),
            times(1 / (eps * na), plus(plain.beside(two, bad)[1], times(-1, a))),
        )
        return plainly.item() + beta * cosine, plus(slope, times(beta, pull))

    plain.follow(step)
    settings = {"name": "seam", "alpha": alpha, "beta": beta, "epsilon": eps, "compat": compat}
    compare(SEAM, settings, plain, start, tmp_path)


@pytest.mark.parametrize(("resist", "squared"), [("entropy", False), ("dpo", True)])
def test_tar(resist: str, squared: bool, start: Path, tmp_path: Path) -> None:
    """grad retain(w) + lam sum_i exp(c (i - (K - 1))) grad resist(w_i); K = 4, every second w_i.

    All harmful rows are held out and there is one rate, so that no choice is left to a seed.
    """
    plain, lam, steps, every, c, rate = Plain(start), 0.8, 4, 2, 0.5, 2e-3
    original: Any = AutoModelForCausalLM.from_pretrained(start)
    everything = len(plain.harm)

    def entropy() -> torch.Tensor:
        logs = plain.logs(plain.harm)
        real = plain.places(plain.harm, lambda r, i: True)[:, 1:]
        return (logs.exp() * logs).sum(-1)[real].mean()

    def gains(rows: Rows) -> torch.Tensor:
        ids, answer = plain.ids(rows), plain.answer_of(rows)
        losses = [plain.chosen(m(ids).logits, ids, answer) for m in (original, plain.model)]
        then, now = (part.split(answer.sum(1).tolist()) for part in losses)
        return torch.stack([(x.detach() - y).sum() for x, y in zip(then, now, strict=True)])

    def preference() -> torch.Tensor:
        margins = gains(plain.refusal) - gains(plain.harm)
        return -torch.sigmoid(0.1 * margins).log().mean()

    def distance(rows: Rows) -> torch.Tensor:
        ids, real = plain.ids(rows), plain.places(rows, lambda r, i: True)
        then = original(ids, output_hidden_states=True).hidden_states
        now = plain.model(ids, output_hidden_states=True).hidden_states
        gaps = torch.stack([(x - y.detach())[real] for x, y in zip(now, then, strict=True)])
        return (gaps**2).sum(-1).mean() if squared else gaps.norm(dim=-1).mean()

    def step(index: int) -> tuple[float, Gradient]:
        saved = [p.detach().clone() for p in plain.weights]
        attacker = torch.optim.AdamW(plain.weights, lr=rate, weight_decay=0.01)
        value, aside = 0.0, [torch.zeros_like(p) for p in plain.weights]
        for i in range(steps):
            attacker.zero_grad()
            plain.cross_entropy(at(plain.harm, index * steps + i, HARM_BATCH)).backward()
            attacker.step()
            if (i + 1) % every == 0:
                weight = lam * math.exp(c * (i - (steps - 1)))
                held_out = entropy() if resist == "entropy" else preference()
                value += weight * held_out.item()
                aside = plus(aside, times(weight, plain.slope(held_out)))
        with torch.no_grad():
            for p, s in zip(plain.weights, saved, strict=True):
                p.copy_(s)
        rows = at(plain.benign, index, everything)
        retain = plain.cross_entropy(rows) + distance(rows)
        return value + retain.item(), plus(aside, plain.slope(retain))

    plain.follow(step)
    settings = {
        "name": "tar", "lam": lam, "inner_steps": steps, "every": every, "curve": c,
        "inner_rates": [rate], "inner_batch_size": HARM_BATCH, "resist": resist,
        "squared": squared, "training": {"batch_size": everything},
    }  # fmt: skip
    points = compare(TAR, settings, plain, start, tmp_path)
    assert points[0].terms["distance"] == 0
    assert points[-1].terms["distance"] > 1e-4
