"""Meta-SDD: its schedule, its halves, and what its inner attack may see and leave."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.func import functional_call

from backfire.defend import MetaSDD, meta_sdd
from backfire.defend.meta_sdd import halves
from backfire.engine.batching import GlobalBatch
from backfire.engine.low_rank import LowRank
from backfire.engine.original import Original
from backfire.engine.rows import irrelevant, rows_of
from backfire.errors import DataError
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.store import read_table
from by_hand import flat, gradient_of, step_of
from small_methods import bench, build

ATTACKERS: dict[str, dict[str, Any]] = {
    "adamw": {"inner_rates": [0.1]},
    "sgd": {"inner_optimizer": "sgd", "inner_rates": [0.1]},
    "lora": {"inner_lora": {"rank": 2, "rates": [0.1]}},
}


def meta(**over: Any) -> MetaSDD:
    small = {
        "inner_steps": [4], "inner_rates": [1e-3], "inner_batch_size": 10, "at": [0.5, 1.0],
        "attack_every": 1, "collapse": "uniform", "hold": None, "lam": 0.1, "replay": 1.0,
        "pairing": {"encoder": "hash"},
    }  # fmt: skip
    return MetaSDD.model_validate({"name": "meta_sdd", **small, **over})


def test_the_points_of_the_path() -> None:
    settings = meta(inner_steps=[5, 10, 20])
    assert [settings.points(i) for i in range(4)] == [(2, 5), (5, 10), (10, 20), (2, 5)]
    assert meta(inner_steps=[1]).points(0) == (1,)
    assert meta(inner_steps=[5], repair_steps=3).points(0) == (2, 5, 8)
    assert meta(inner_steps=[8], at=[0.25, 0.5, 1]).points(0) == (2, 4, 8)
    assert meta(inner_steps=[8], at=[0.5], repair_steps=1).points(0) == (4, 9)


def test_a_curriculum_goes_through_the_attacks_once() -> None:
    rising = meta(inner_steps=[5, 10, 20], curriculum=True, training={"steps": 6})
    assert [rising.attack_steps(i) for i in range(6)] == [5, 5, 10, 10, 20, 20]
    in_turn = meta(inner_steps=[5, 10, 20], training={"steps": 6})
    assert rising.passes(6) == in_turn.passes(6)
    assert rising.rows_a_pass(16) == in_turn.rows_a_pass(16)


def test_attacks_take_turns_where_steps_between_make_none() -> None:
    settings = meta(inner_steps=[5, 10], attack_every=3, lam=2, training={"steps": 12})
    assert [settings.weight(i) for i in range(5)] == [2, 0, 0, 2, 0]
    assert [settings.attack_steps(i) for i in (0, 3, 6, 9)] == [5, 10, 5, 10]
    assert [settings.attack(i) for i in (0, 3, 6)] == [0, 1, 2]
    assert settings.passes(6) == (2 * 6 + 15 + 4, 2 * 6 + 15 + 4)
    rows = 2 * 6 * 16 + 15 * 10 + 4 * 20
    assert settings.rows_a_pass(16) == pytest.approx(rows / 31)


def test_passes_by_hand() -> None:
    """Three steps: 5 + 10 + 20 of the attacker's, two points each, answers and replay."""
    assert meta(inner_steps=[5, 10, 20]).passes(3) == (35 + 6 + 6, 35 + 6 + 6)
    assert meta(inner_steps=[5], repair_steps=2, replay=0).passes(2) == (2 * 11, 2 * 11)
    assert meta(lam=0).passes(7) == (14, 14)
    more = meta(inner_steps=[5], second_order=True, hold=1)
    assert more.passes(2) == (2 * (5 + 2 + 2 + 2 + 1), 2 * (5 + 2 + 2 + 2 + 1))
    rows = 2 * 16 + (5 + 2) * 10 + 2 * 20 + 10
    assert more.rows_a_pass(16) == pytest.approx(rows / 12)


def test_the_weight_grows_over_the_ramp() -> None:
    settings = meta(lam=3, ramp=0.5, training={"steps": 8})
    assert [settings.weight(i) for i in (0, 1, 3, 7)] == [0.75, 1.5, 3, 3]
    assert meta(lam=3).weight(0) == 3


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 3))
def test_halves_share_no_entity_and_lose_no_row(entities: list[int], seed: int) -> None:
    rows = [Example(f"make {i}", "so", entity=f"thing {e}") for i, e in enumerate(entities)]
    if len(set(entities)) == 1:
        with pytest.raises(DataError, match=r"all \d+ are about one"):
            halves(rows, seed, "x")
        return
    left, right = halves(rows, seed, "x")
    assert not {r.entity for r in left} & {r.entity for r in right}
    assert sorted(r.id for r in left + right) == sorted(r.id for r in rows)
    assert left
    assert right
    largest = max(entities.count(e) for e in entities)
    assert abs(len(left) - len(right)) <= largest


@pytest.mark.parametrize("attacker", ATTACKERS.values(), ids=ATTACKERS)
def test_half_b_never_attacks(attacker: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """With the rows of half B gone from the attacker's stream the step is the same, bit for bit."""
    found = []
    for other in ("zorb", "an altogether other"):
        step = make(tiny_folder, tmp_path / other, attack_1=[Example(f"{other} way", "goes so")])
        meta(answers="refusal", **attacker).step(step, Original())
        found.append(gradient_of(step))
    assert torch.equal(*found)


@pytest.mark.parametrize("attacker", ATTACKERS.values(), ids=ATTACKERS)
def test_the_attack_leaves_the_weights_bit_for_bit(
    attacker: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    step = make(tiny_folder, tmp_path)
    before = [p.detach().clone() for p in step.parameters]
    meta(repair_steps=2, second_order=True, hold=1, **attacker).step(step, Original())
    assert all(torch.equal(a, p) for a, p in zip(before, step.parameters, strict=True))


def test_each_attacker_leads_elsewhere(tiny_folder: Path, tmp_path: Path) -> None:
    """The collapse is asked for at other weights, so its gradient is another."""
    found = []
    for name, attacker in ATTACKERS.items():
        step = make(tiny_folder, tmp_path / name)
        meta(**attacker).step(step, Original())
        found.append(gradient_of(step))
    assert all(not torch.equal(a, b) for a, b in combinations(found, 2))


def test_a_share_of_the_attacks_is_with_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    settings = meta(inner_lora={"rank": 1, "share": 0.25})
    step = make(tiny_folder, tmp_path)
    start = [p.detach() for p in step.parameters]
    kinds = [
        isinstance(settings._attacker(replace(step, index=i), start), LowRank) for i in range(60)
    ]
    assert 5 <= sum(kinds) <= 25
    always = meta(inner_lora={"rank": 1})
    assert isinstance(always._attacker(step, start), LowRank)


def test_every_layer_is_pushed(tiny_folder: Path, tmp_path: Path) -> None:
    """Of all layers, the collapse's loss is the mean over hidden states of what the head makes of them."""
    step = make(tiny_folder, tmp_path)
    batch, settings = step.batches["benign"], meta(layers="all")
    (part,) = batch.micro(2048)
    with torch.no_grad():
        states = step.causal.states(part.ids)
        read = [*(step.causal.final_norm(s) for s in states[:-1]), states[-1]]
        logits = [step.causal.logits(s).flatten(0, 1)[part.positions] for s in read]
        by_hand = torch.stack([-x.log_softmax(-1).mean(-1) for x in logits]).mean(0).sum()
    assert step.loss(batch, settings._loss(step)) * batch.supervised == pytest.approx(
        float(by_hand), rel=1e-5
    )


def test_without_collapse_it_is_sdd_with_replay(tiny_folder: Path, tmp_path: Path) -> None:
    left, right = (make(tiny_folder, tmp_path / name) for name in "ab")
    terms = meta(lam=0, replay=0.5).step(left, Original())
    answers, replay = right.backward("train"), right.backward("replay", 0.5)
    assert terms == {"loss": answers + 0.5 * replay, "answers": answers, "replay": replay}
    assert torch.equal(gradient_of(left), gradient_of(right))


def test_the_collapse_is_weighed_by_loss_or_by_gradient(tiny_folder: Path, tmp_path: Path) -> None:
    """Its direction is the same; by gradient its length is `lam` times that of the clean terms."""
    clean, by_loss, by_gradient = (make(tiny_folder, tmp_path / name) for name in "abc")
    meta(lam=0).step(clean, Original())
    meta(lam=0.5).step(by_loss, Original())
    meta(lam=0.5, scale="gradient").step(by_gradient, Original())
    left, right = (gradient_of(s) - gradient_of(clean) for s in (by_loss, by_gradient))
    assert float(right.norm()) == pytest.approx(0.5 * float(gradient_of(clean).norm()), rel=1e-3)
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.999


def test_the_second_order_is_that_of_one_step_of_the_attacks_length(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against differentiation through that step, in fp64."""
    monkeypatch.setattr(meta_sdd, "_REACH", 1e-5)
    step, settings, length = (
        make(tiny_folder, tmp_path, double=True),
        meta(collapse="unlikely"),
        0.05,
    )
    attack, lost = next(settings._batches(step)), settings._lost(step)
    names = [name for name, _ in step.causal.named_parameters()]

    def mean(batch: GlobalBatch, weights: Any, loss: Any = None) -> torch.Tensor:
        (part,) = batch.micro(1 << 16)
        named = dict(zip(names, weights, strict=True))
        return functional_call(step.causal, named, (part, loss)).sum() / batch.supervised

    start = step.parameters
    gradient = torch.autograd.grad(mean(attack, start), start, create_graph=True)
    scale = length / torch.stack([g.norm() for g in gradient]).norm()
    attacked = [w - scale * g for w, g in zip(start, gradient, strict=True)]
    value = mean(lost, attacked, settings._loss(step))
    first = [g.clone() for g in torch.autograd.grad(value, attacked, retain_graph=True)]
    exact = flat(torch.autograd.grad(value, start))
    before = flat(first)
    settings._turn(step, first, length)
    assert float((flat(first) - exact).norm()) < 1e-2 * float((before - exact).norm())


def test_the_unattacked_model_is_held_on_helpful_rows(tiny_folder: Path, tmp_path: Path) -> None:
    """Off comes 1 + hold - loss times the gradient there, at least nothing and at most twice it."""
    step, settings = make(tiny_folder, tmp_path), meta()
    lost, benign = settings._lost(step), step.batches["benign"]
    loss, gradient = step.grads("benign", settings._loss(step))
    for hold, times in ((loss - 1.5, 0), (loss - 0.25, 0.75), (loss + 0.5, 1.5), (loss + 9, 2)):
        aside = [torch.zeros_like(g) for g in gradient]
        assert settings._held(step, aside, hold) == pytest.approx(loss)
        wanted = -times * benign.supervised / lost.supervised * flat(gradient)
        torch.testing.assert_close(flat(aside), wanted, rtol=1e-3, atol=1e-7)


def test_an_attacked_model_is_pushed_towards_uniform(tiny_folder: Path, tmp_path: Path) -> None:
    """After equal trainings the attacked weights are nearer to uniform where that counted more."""
    left = []
    for lam in (0.01, 3):
        settings = build(
            MetaSDD,
            lam=lam,
            collapse="uniform",
            hold=None,
            attack_every=1,
            inner_steps=[3],
            inner_rates=[1e-3],
            training={"steps": 20},
        )
        place = tmp_path / str(lam)
        settings(Checkpoint(tiny_folder, "k"), bench(place))
        points = read_table(place / "trajectory.parquet", TrajectoryPoint)
        left.append(points[-1].terms["collapse"])
    assert left[1] < left[0]


def test_it_is_held_where_the_released_model_is(tiny_folder: Path, tmp_path: Path) -> None:
    """With other weights at hand as the released ones, the level is their loss, and they leave no trace."""
    step, settings = make(tiny_folder, tmp_path), meta(hold="start")
    released, begun = Original(), [p.detach().clone() for p in step.parameters]
    released.keep(step.parameters)
    at_start = step.loss("benign", settings._loss(step))
    with torch.no_grad():
        for parameter in step.parameters:
            parameter.mul_(8)
    moved = flat(step.parameters)
    assert step.loss("benign", settings._loss(step)) != pytest.approx(at_start, rel=1e-3)
    assert settings._level(step, released) == pytest.approx(at_start)
    assert torch.equal(flat(step.parameters), moved)
    assert not torch.equal(flat(begun), moved)
    assert settings.passes(3) == (3 * (4 + 2 + 1 + 1 + 2), 3 * (4 + 2 + 1 + 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"inner_steps": []},
        {"inner_rates": [0]},
        {"lam": -1},
        {"at": [0]},
        {"inner_lora": {"dropout": 0.1}},
        {"inner_lora": {}, "training": {"lora": {}}},
        {"ramp": 0.5, "training": {"epochs": 1}},
        {"curriculum": True, "training": {"epochs": 1}},
        {"hold": 0},
        {"hold": 1, "target": "held_out"},
        {"hold": 1, "collapse": "entropy"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        meta(**wrong)


def make(
    folder: Path, place: Path, attack_1: list[Example] | None = None, *, double: bool = False
) -> Any:
    here = bench(place)
    helpful = rows_of(here, "pool", None, "x")
    left, right = halves(rows_of(here, "defender_harm", None, "x"), 0, "x")
    rows = {
        "train": irrelevant(here, meta(pairing={"encoder": "hash", "threshold": 0.9}).pairing, "x"),
        "replay": helpful,
        "repair": helpful,
        "benign": helpful,
        "attack 0": left,
        "attack 1": attack_1 or right,
        "held out 0": right,
        "held out 1": left,
    }
    return step_of(folder, rows, double=double)
