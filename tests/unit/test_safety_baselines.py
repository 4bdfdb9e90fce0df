"""SimPO and DeepAlign: their losses by hand, the rows they are taken on, and what training does."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.defend import DeepAlign, SimPO
from backfire.engine.batching import GlobalBatch
from backfire.engine.primitives import Step
from backfire.engine.rows import refusals, rows_of
from backfire.models.tiny import save_tiny
from backfire.numerics.preference import simpo as simpo_loss
from backfire.pricing import cost, known_size
from backfire.records import Checkpoint, Example
from by_hand import gradient_of, step_of
from small_methods import DATA, bench, build


def simpo(**over: Any) -> SimPO:
    return SimPO.model_validate({"name": "simpo", **over})


def deep_align(**over: Any) -> DeepAlign:
    return DeepAlign.model_validate({"name": "deep_align", **over})


def make(folder: Path, place: Path, rows: list[Example] | None = None, **over: Any) -> Step:
    here = bench(place, data={**DATA, "defender_harm": rows or DATA["defender_harm"]})
    streams = {
        "train": refusals(here, "defender_harm", None, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
        "benign": rows_of(here, "pool", None, "x"),
    }
    return step_of(folder, streams, together=["harm"], **over)


@pytest.fixture
def step(tiny_folder: Path, tmp_path: Path) -> Step:
    return make(tiny_folder, tmp_path)


def test_the_preference_loss_by_hand() -> None:
    """2.5 * (-1 + 2) - 1.375 = 1.125, and the other way round -3.875."""
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    straight = [math.log1p(math.exp(-1.125)), math.log1p(math.exp(3.875))]
    turned = [math.log1p(math.exp(1.125)), math.log1p(math.exp(-3.875))]

    def loss(**over: Any) -> list[float]:
        values: list[float] = simpo_loss(chosen, rejected, 2.5, 1.375, **over).tolist()
        return values

    assert loss() == pytest.approx(straight)
    mixed = [0.9 * s + 0.1 * t for s, t in zip(straight, turned, strict=True)]
    assert loss(smoothing=0.1) == pytest.approx(mixed)
    assert loss(kind="hinge") == pytest.approx([0, 1 + 3.875])


@pytest.mark.parametrize("budget", [8, 4096])
def test_a_simpo_step_by_hand(budget: int, tiny_folder: Path, tmp_path: Path) -> None:
    """Mean log-probabilities of single rows, through the library's logits; pairs never part."""
    step = make(tiny_folder, tmp_path, token_budget=budget)
    settings = simpo(sft=0.3)
    terms = settings.step(step)
    assert (step.passes.forwards, step.passes.backwards) == (1, 1) == settings.passes(1)
    logs = {}
    for name in ("train", "harm"):
        logs[name] = []
        for row in step.batches[name].rows:
            with torch.no_grad():
                logits = step.causal.model(torch.tensor([row.ids])).logits[0]
            answer = torch.log_softmax(logits, -1)[range(row.start - 1, len(row.ids) - 1)]
            logs[name].append(answer.gather(1, torch.tensor(row.ids[row.start :])[:, None]))
    margins = [
        2.5 * float(w.mean() - h.mean()) - 1.375
        for w, h in zip(logs["train"], logs["harm"], strict=True)
    ]
    refusal = -float(torch.cat(logs["train"]).mean())
    wanted = sum(math.log1p(math.exp(-m)) for m in margins) / 4 + 0.3 * refusal
    assert terms["loss"] == pytest.approx(wanted, rel=1e-4)
    assert terms["refusal"] == pytest.approx(refusal, rel=1e-4)
    assert terms["won"] == sum(m + 1.375 > 0 for m in margins) / 4


def test_simpo_makes_refusals_win(tiny_folder: Path, tmp_path: Path) -> None:
    training = {"steps": 20, "learning_rate": 3e-3, "warmup": 0}
    made = build(SimPO, training=training)(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    before, after = (
        simpo().step(make(folder, tmp_path, batch_size=10)) for folder in (tiny_folder, made.path)
    )
    assert after["loss"] < before["loss"]
    assert after["won"] > max(0.9, before["won"])


def test_simpo_feeds_two_answers_a_row() -> None:
    size = known_size("tiny:llama")
    assert size is not None
    training = {"steps": 10, "batch_size": 4}
    counts = {"defender_harm": 40, "pool": 40}
    assert cost(build(SimPO, training=training), size, counts, 50).tokens == 10 * 8 * 50
    deep = build(DeepAlign, benign_batch_size=6, training=training)
    assert cost(deep, size, counts, 50).tokens == 10 * (4 + 6) * 50


def test_refusals_follow_a_beginning_of_the_harmful_answer(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """One half of them, of 1 to min(depth, answer) tokens, each length as often."""
    step = make(tiny_folder, tmp_path)
    lengths: Counter[int] = Counter()
    settings = deep_align(depth=9)
    for index in range(500):
        step.index = index
        for deep, refused, harmful in zip(
            settings.deepened(step).rows,
            step.batches["train"].rows,
            step.batches["harm"].rows,
            strict=True,
        ):
            k = deep.start - refused.start
            answer = refused.ids[refused.start :]
            assert deep.ids == [*harmful.ids[: harmful.start + k], *answer]
            assert [deep.ids[i] for i in deep.supervised] == answer
            lengths[k] += 1
    total = sum(lengths.values())
    assert set(lengths) == set(range(10)), "the answers are longer than that"
    assert abs(lengths[0] / total - 0.5) < 4 * math.sqrt(0.25 / total)
    each = total / 18
    assert all(abs(lengths[k] - each) < 5 * math.sqrt(each) for k in range(1, 10))


def test_depth_ends_before_the_harmful_answer_does(tiny_folder: Path, tmp_path: Path) -> None:
    short = [Example(f"q{i}", "abc", harmful=True, refusal="no") for i in range(4)]
    step = make(tiny_folder, tmp_path, short)
    depths = set()
    for index in range(40):
        step.index = index
        for deep, harmful in zip(
            deep_align(prefixed=1).deepened(step).rows, step.batches["harm"].rows, strict=True
        ):
            depths.add(deep.start - harmful.start)
    assert depths == {1, 2, 3}, "its end token is not a beginning"


@pytest.mark.parametrize("limit", [30, 45])
def test_no_refusal_is_cut_for_its_beginning(limit: int, step: Step) -> None:
    settings = deep_align(prefixed=1, training={"max_length": limit})
    for index in range(20):
        step.index = index
        for deep, refused in zip(
            settings.deepened(step).rows, step.batches["train"].rows, strict=True
        ):
            assert len(deep.ids) <= max(limit, len(refused.ids))
            assert deep.ids[-1] == refused.ids[-1]


def test_by_default_every_token_of_both_batches_counts_alike(step: Step) -> None:
    settings = deep_align()
    terms = settings.step(step)
    assert (step.passes.forwards, step.passes.backwards) == (2, 2) == settings.passes(1)
    ours = gradient_of(step)
    step.clear()
    pooled = GlobalBatch(settings.deepened(step).rows + step.batches["benign"].rows)
    assert step.backward(pooled) == pytest.approx(terms["loss"], rel=1e-5)
    torch.testing.assert_close(ours, gradient_of(step), atol=1e-6, rtol=1e-4)


def test_a_weight_mixes_the_two_means(step: Step) -> None:
    terms = deep_align(weight=0.2).step(step)
    assert terms["loss"] == pytest.approx(0.2 * terms["refusal"] + 0.8 * terms["benign"])
    ours = gradient_of(step)
    step.clear()
    step.backward(deep_align().deepened(step), weight=0.2)
    step.backward("benign", weight=0.8)
    torch.testing.assert_close(ours, gradient_of(step), atol=1e-7, rtol=1e-5)


def test_after_deep_training_a_harmful_beginning_is_refused_more(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Than after training on refusals without such beginnings."""
    losses = {}
    for prefixed in (0.0, 1.0):
        training = {"steps": 25, "learning_rate": 5e-3}
        member = build(DeepAlign, prefixed=prefixed, training=training)
        made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path / str(prefixed)))
        step = make(made.path, tmp_path, batch_size=10)
        losses[prefixed] = step.loss(deep_align(prefixed=1).deepened(step))
    assert losses[1.0] < losses[0.0]


def test_dropout_and_context_are_the_models(tmp_path: Path) -> None:
    """A model whose context is shorter than the length limit sets the limit."""
    step = make(save_tiny(tmp_path / "gpt2", "gpt2"), tmp_path)
    step.causal.model.config.n_positions = 40
    for index in range(20):
        step.index = index
        rows = deep_align(prefixed=1).deepened(step).rows
        refused = step.batches["train"].rows
        assert all(len(d.ids) <= max(40, len(r.ids)) for d, r in zip(rows, refused, strict=True))
