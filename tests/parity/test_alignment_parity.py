"""Vaccine, T-Vaccine, RepNoise, SimPO and DeepAlign against straight-line versions in plain torch.

The versions here are written from the equations and share nothing with the package but token ids and
random numbers; hooks are their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from backfire.defend import DeepAlign, RepNoise, SimPO, TVaccine, Vaccine
from backfire.seeding import child_seed, rng
from straight_line import BATCH, Plain, Rows, at, compare, save_start


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start") / "llama")


@contextmanager
def watching(modules: list[Any], add: list[torch.Tensor] | None = None) -> Iterator[list[Any]]:
    """Keep the modules' outputs, after something has been added to them."""
    outputs: list[Any] = [None] * len(modules)

    def hook(index: int) -> Any:
        def run(module: Any, inputs: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            value = value if add is None else value + add[index]
            outputs[index] = value
            return (value, *output[1:]) if isinstance(output, tuple) else value

        return run

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    yield outputs
    for handle in handles:
        handle.remove()


def under_drift(plain: Plain, rows: Rows, modules: list[Any], rho: float) -> torch.Tensor:
    with watching(modules) as outputs:
        loss = plain.cross_entropy(rows)
    slopes = torch.autograd.grad(loss, outputs)
    length = torch.cat([s.flatten() for s in slopes]).norm() + 1e-7
    with watching(modules, [rho * s / length for s in slopes]):
        return plain.cross_entropy(rows)


def test_vaccine(start: Path, tmp_path: Path) -> None:
    plain = Plain(start)
    rows = plain.mixed(plain.refusal)
    plain.train(lambda t: under_drift(plain, at(rows, t), plain.attention, 0.8))
    compare(Vaccine, {"name": "vaccine", "rho": 0.8}, plain, start, tmp_path)


def test_t_vaccine(start: Path, tmp_path: Path) -> None:
    """One layer of three drifts, two steps long; importance is measured every second step."""
    plain = Plain(start)
    shares, drawn = np.zeros(3), [0]
    rows = plain.mixed(plain.refusal)

    def loss(step: int) -> torch.Tensor:
        nonlocal shares, drawn
        if step % 2 == 0:
            with watching(plain.attention) as outputs:
                harmful = plain.cross_entropy(at(plain.harm, step // 2, 1))
            norms = [float(s.norm()) for s in torch.autograd.grad(harmful, outputs)]
            shares = np.array(norms) / sum(norms)
            turn = rng(0, "layers", step // 2)
            drawn = turn.choice(3, 1, replace=False, p=shares).tolist()
        asleep = [a for i, a in enumerate(plain.attention) if i not in drawn]
        plain.resting = [p for module in asleep for p in module.parameters()]
        awake = [plain.attention[i] for i in drawn]
        return under_drift(plain, at(rows, step), awake, 1.5)

    plain.train(loss)
    settings = {
        "name": "t_vaccine", "layers": 1, "rho": 1.5, "redraw_every": 2, "refresh_every": 2,
    }  # fmt: skip
    compare(TVaccine, settings, plain, start, tmp_path)


def discrepancy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    both = torch.cat([x, y])
    gaps = (both[:, None] - both[None]).square().sum(-1)
    n = len(both)
    width = gaps.detach().sum() / (n * n - n) / 2 ** (5 // 2)
    kernel = sum(torch.exp(-gaps / (width * 2**i)) for i in range(5))
    assert isinstance(kernel, torch.Tensor)
    m = len(x)
    return (kernel[:m, :m] + kernel[m:, m:] - kernel[:m, m:] - kernel[m:, :m]).mean()


@pytest.mark.parametrize("compat", [False, True])
def test_repnoise(compat: bool, start: Path, tmp_path: Path) -> None:
    """Both ways; the official code's works on whole padded tensors and their masks."""
    alpha, beta = 0.6, 0.9
    plain = Plain(start)
    decoder = plain.model.model
    mlps = [layer.mlp for layer in decoder.layers]

    def entropy(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not compat:
            return plain.chosen(logits, ids, mask).mean()
        flat = (logits * mask[..., None])[:, :-1].flatten(0, 1)
        labels = (ids * mask)[:, 1:].flatten()
        return functional.cross_entropy(flat[labels != 0], labels[labels != 0])

    def loss(step: int) -> torch.Tensor:
        harmful, refused = at(plain.harm, step), at(plain.refusal, step)
        width = max(len(r.ids) for r in harmful + refused)
        h, r = plain.ids(harmful, width), plain.ids(refused, width)
        mask_h = mask_r = h != r
        if not compat:
            where = torch.arange(width)
            mask_h = mask_h & (where < torch.tensor([[len(row.ids)] for row in harmful]))
            mask_r = mask_r & (where < torch.tensor([[len(row.ids)] for row in refused]))
        with watching(mlps) as outputs:
            output = plain.model(h, output_hidden_states=True)
        draw = torch.Generator().manual_seed(child_seed(0, "noise", step))
        noise = torch.zeros(())
        for states in outputs:
            drawn = torch.zeros_like(states)
            drawn[mask_h] = torch.randn(int(mask_h.sum()), states.shape[-1], generator=draw)
            masked = states * mask_h[..., None]
            noise = noise + discrepancy(masked.flatten(1), drawn.flatten(1)) / len(outputs)
        *inner, last = output.hidden_states
        lenses = [plain.model.lm_head(decoder.norm(state)) for state in inner]
        lenses += [plain.model.lm_head(decoder.norm(last) if compat else last), output.logits]
        harm = sum(entropy(logits, h, mask_h) for logits in lenses)
        ascent = harm / len(output.hidden_states) + 1
        retain = entropy(plain.model(r).logits, r, mask_r)
        return retain + beta * noise - alpha * torch.log(ascent)  # type: ignore[arg-type]

    plain.train(loss)
    settings = {"name": "repnoise", "alpha": alpha, "beta": beta, "compat": compat}
    compare(RepNoise, settings, plain, start, tmp_path)


def test_simpo(start: Path, tmp_path: Path) -> None:
    plain = Plain(start)

    def loss(step: int) -> torch.Tensor:
        total = torch.zeros(())
        for w, h in zip(at(plain.refusal, step), at(plain.harm, step), strict=True):
            win, lose = -plain.cross_entropy([w]), -plain.cross_entropy([h])
            total = total - torch.sigmoid(2 * win - 2 * lose - 0.5).log()
        return total / BATCH + 0.25 * plain.cross_entropy(at(plain.refusal, step))

    plain.train(loss)
    settings = {"name": "simpo", "beta": 2, "gamma": 0.5, "sft": 0.25}
    compare(SimPO, settings, plain, start, tmp_path)


def test_deep_align(start: Path, tmp_path: Path) -> None:
    plain = Plain(start)

    def loss(step: int) -> torch.Tensor:
        draw = rng(0, "depth", step)
        total, tokens = torch.zeros(()), 0
        for refused, harmful in zip(at(plain.refusal, step), at(plain.harm, step), strict=True):
            first, second = draw.random(), draw.random()
            longest = min(5, len(harmful.ids) - harmful.start - 1)
            k = math.floor(second * longest) + 1 if first < 0.5 else 0
            answer = refused.ids[refused.start :]
            ids = torch.tensor([harmful.ids[: harmful.start + k] + answer])
            logs = plain.model(ids).logits[0].log_softmax(-1)[-len(answer) - 1 : -1]
            total = total - logs.gather(1, torch.tensor(answer)[:, None]).sum()
            tokens += len(answer)
        helpful = plain.cross_entropy(at(plain.benign, step, 3))
        return 0.3 * total / tokens + 0.7 * helpful

    plain.train(loss)
    settings = {"name": "deep_align", "depth": 5, "weight": 0.3, "benign_batch_size": 3}
    compare(DeepAlign, settings, plain, start, tmp_path)
