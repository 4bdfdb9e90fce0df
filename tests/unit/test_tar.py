"""TAR: its schedule, its gradients at attacked weights, and what training with it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from backfire.defend import TAR
from backfire.defend.tar import _Resistance
from backfire.engine.batching import GlobalBatch, as_text
from backfire.engine.inner import fine_tune, fresh_adamw
from backfire.engine.primitives import Step, excursion
from backfire.engine.rows import refusals, rows_of
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint, TrajectoryPoint
from backfire.seeding import rng
from backfire.store import read_table
from by_hand import flat, gradient_of, step_of
from small_methods import bench, build


def tar(**over: Any) -> TAR:
    small = {"inner_steps": 4, "every": 2, "inner_rates": [0.01], "represent": 0, "lam": 1}
    return TAR.model_validate({"name": "tar", **small, **over})


def take(settings: TAR, step: Step) -> Mapping[str, float]:
    """Make one step of a training that starts where the step stands."""
    objective = _Resistance(settings)
    objective.begin(step.parameters)
    return objective(step)


def make(folder: Path, place: Path, **over: Any) -> Step:
    here = bench(place)
    rows = {
        "train": rows_of(here, "pool", None, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
        "refusal": refusals(here, "defender_harm", None, "x"),
        "helpful": rows_of(here, "pool", None, "x"),
    }
    return step_of(folder, rows, **over)


@pytest.fixture
def step(tiny_folder: Path, tmp_path: Path) -> Step:
    return make(tiny_folder, tmp_path)


def test_the_schedule_by_hand() -> None:
    """Official scripts: the last of 64 steps counts 4, the first held-out one 4 exp(-3.75)."""
    settings = TAR(lam=4, inner_steps=64, every=4, curve=0.0625)
    assert settings.weight(63) == 4
    assert settings.weight(3) == pytest.approx(4 * math.exp(-3.75))
    assert settings.weight(3) == pytest.approx(0.0941, abs=1e-4)
    assert TAR(lam=4, tasks=2).weight(63) == 2
    assert TAR(lam=4, curve=None).weight(3) == TAR(lam=4, curve=None).weight(63) == 4 / 64
    assert settings.passes(1) == (64 + 16 + 1 + 2, 64 + 16 + 1)
    assert TAR(resist="entropy").passes(750) == (750 * 82, 750 * 81)
    assert TAR(resist="entropy", represent=0, tasks=2).passes(1) == (161, 161)
    mixed = TAR(mapping_steps=10, sft_steps=20, training={"steps": 50})  # type: ignore[arg-type]
    assert mixed.passes(50) == (20 * 83 + 20 + 20, 20 * 81 + 20 + 20)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"inner_steps": 3, "every": 4}, "ends before the first held-out gradient"),
        ({"sft_steps": 5, "training": {"epochs": 1}}, "give `training.steps`"),
        ({"sft_steps": 5, "mapping_steps": 6, "training": {"steps": 10}}, "are more than all 10"),
    ],
)
def test_steps_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        tar(**wrong)


def test_the_weights_stay_bit_for_bit_and_passes_are_counted(step: Step) -> None:
    before = [p.detach().clone() for p in step.parameters]
    settings = tar(represent=1)
    take(settings, step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.parameters, strict=True))
    assert (step.passes.forwards, step.passes.backwards) == settings.passes(1) == (9, 7)
    assert step.causal.training


def test_without_attacks_it_retains(step: Step) -> None:
    take(tar(inner_steps=0), step)
    ours = gradient_of(step)
    step.clear()
    step.backward("train")
    assert torch.equal(ours, gradient_of(step))


@pytest.mark.parametrize("resist", ["dpo", "entropy"])
def test_one_inner_step_against_autograd(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resist: str
) -> None:
    """K = 1: the gradient is that of the held-out loss at the weights after one AdamW step."""
    step = make(tiny_folder, tmp_path, double=True, batch_size=10)
    settings = tar(inner_steps=1, every=1, resist=resist, retain=0, lam=0.7, inner_rates=[0.02])
    terms = take(settings, step)
    ours = gradient_of(step)
    step.clear()

    model, harm, refused = (
        step.causal.model,
        step.streams["harm"].rows,
        step.streams["refusal"].rows,
    )
    original = {name: value.clone() for name, value in model.state_dict().items()}
    first = step.streams["harm"].batch(0).rows
    loss = sum(_nll(model, row) for row in first) / sum(len(row.supervised) for row in first)
    step.clear()
    loss.backward()
    for p in step.parameters:
        # AdamW's first step: decay, then the gradient over its own size.
        p.data.mul_(1 - 0.02 * 0.01).sub_(0.02 * p.grad / (p.grad.abs() + 1e-8))
    step.clear()
    if resist == "entropy":
        logs = [model(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1) for row in harm]
        entropies = torch.cat([-(log.exp() * log).sum(-1) for log in logs])
        held_out = -entropies.mean()
    else:
        attacked = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(original)
        with torch.no_grad():
            known = [(_nll(model, a), _nll(model, b)) for a, b in zip(refused, harm, strict=True)]
        model.load_state_dict(attacked)
        margins = [
            0.1 * ((r - _nll(model, a)) - (h - _nll(model, b)))
            for a, b, (r, h) in zip(refused, harm, known, strict=True)
        ]
        held_out = torch.stack([(1 + (-m).exp()).log() for m in margins]).mean()
    exact = flat(torch.autograd.grad(0.7 * held_out, step.parameters))
    assert terms["resist"] == pytest.approx(0.7 * held_out.item(), abs=1e-6)
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-3)


def _nll(model: Any, row: Any) -> torch.Tensor:
    """Minus the log-probability of a row's answer, from the library's own logits."""
    logs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return -logs[row.start - 1 : -1].gather(1, torch.tensor(row.ids[row.start :])[:, None]).sum()


def test_gradients_add_up_over_an_attack(step: Step) -> None:
    """Two held-out gradients of one attack, weighted; the attack is replayed beside it."""
    settings = tar(retain=0, curve=0.5, lam=3, resist="entropy")
    terms = take(settings, step)
    ours = gradient_of(step)
    step.clear()
    held_out = as_text(GlobalBatch(tuple(step.streams["harm"].rows)))
    expected, value = torch.zeros_like(ours), 0.0
    with excursion(step.parameters):
        batches = [step.streams["harm"].batch(i) for i in range(4)]
        for i, _ in enumerate(fine_tune(step, batches, fresh_adamw(step.parameters, 0.01, 0.01))):
            if i in (1, 3):
                loss, slopes = step.grads(held_out, _certainty)
                expected += settings.weight(i) * flat(slopes)
                value += settings.weight(i) * loss
    assert (settings.weight(1), settings.weight(3)) == (pytest.approx(3 * math.exp(-1)), 3)
    assert terms["resist"] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def _certainty(model: Any, part: Any) -> torch.Tensor:
    probabilities = model.logits(model.hidden(part.ids)).flatten(0, 1)[part.positions].softmax(-1)
    return (probabilities * probabilities.log()).sum()


def test_every_attack_has_batches_of_its_own(step: Step) -> None:
    objective = _Resistance(tar(tasks=2))
    taken = []
    for index in range(2):
        step.index = index
        for task in range(2):
            taken += [batch.rows for batch in objective._batches(step, task, rng(0, "x"))]
    assert taken == [step.streams["harm"].batch(i).rows for i in range(16)]


def test_kinds_of_attack(step: Step) -> None:
    def batches(kind: str, seed: int = 0) -> list[GlobalBatch]:
        objective = _Resistance(tar(adversaries=[kind], inner_steps=20))
        return list(objective._batches(step, 0, rng(seed, "x")))

    harm = set(map(id, step.streams["harm"].rows))
    assert all(id(row) in harm for batch in batches("pairs") for row in batch.rows)
    assert all(row.start == 1 for batch in batches("text") for row in batch.rows)
    shares = []
    for seed in range(30):
        harmful = [all(id(row) in harm for row in batch.rows) for batch in batches("switch", seed)]
        assert harmful == sorted(harmful), "helpful rows first"
        shares.append(1 - sum(harmful) / 20)
    assert sum(shares) / 30 == pytest.approx(2 / 3, abs=0.08)  # the mean of Beta(6, 3)


def test_the_quirk_multiplies_the_attackers_rate(step: Step) -> None:
    ours, theirs = tar(inner_steps=10, compat=True), tar(inner_steps=10, inner_rates=[0.005])
    first = take(ours, step)
    step.clear()
    assert take(theirs, step) == first


def test_a_bound_drops_the_resistance(step: Step) -> None:
    value = take(tar(retain=0), step)["resist"]
    step.clear()
    take(tar(retain=0, bound=value + 1e-3), step)
    assert float(gradient_of(step).norm()) == 0
    step.clear()
    take(tar(retain=0, bound=value - 1e-3), step)
    assert float(gradient_of(step).norm()) > 0


@pytest.mark.parametrize("squared", [False, True])
def test_retaining_by_hand(tiny_folder: Path, tmp_path: Path, squared: bool) -> None:
    """Mean over tokens and layers of the distance from the original's hidden states, and its slope."""
    step = make(tiny_folder, tmp_path, double=True)
    objective = _Resistance(tar(inner_steps=0, represent=0.3, retain=2, squared=squared))
    objective.begin(step.parameters)
    rows, model = step.batches["train"].rows, step.causal.model
    assert objective(step)["distance"] == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        before = [
            model(torch.tensor([r.ids]), output_hidden_states=True).hidden_states for r in rows
        ]
        for p in step.parameters:
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    step.clear()
    terms = objective(step)
    after = [model(torch.tensor([r.ids]), output_hidden_states=True).hidden_states for r in rows]
    gaps = torch.stack(
        [
            torch.cat([(a[i] - b[i])[0] for a, b in zip(after, before, strict=True)])
            for i in range(3)
        ]
    )
    squares = gaps.square().sum(-1)
    distance = squares.mean() if squared else squares.sqrt().mean()
    answers = sum(_nll(model, row) for row in rows) / step.batches["train"].supervised
    assert terms["distance"] == pytest.approx(distance.item(), rel=1e-5)
    assert terms["retain"] == pytest.approx(answers.item(), rel=1e-6)
    exact = torch.autograd.grad(2 * (answers + 0.3 * distance), step.parameters)
    torch.testing.assert_close(gradient_of(step), flat(exact), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("resist", ["dpo", "entropy"])
def test_the_cut_into_micro_batches_does_not_matter(
    tiny_folder: Path, tmp_path: Path, resist: str
) -> None:
    whole = make(tiny_folder, tmp_path, double=True)
    parts = make(tiny_folder, tmp_path, double=True, token_budget=8)
    settings = tar(resist=resist, represent=1)
    ours, theirs = take(settings, whole), take(settings, parts)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(gradient_of(parts), gradient_of(whole), atol=1e-4, rtol=1e-3)


def test_attacks_leave_the_masks_of_retaining_alone(tmp_path: Path) -> None:
    step = make(save_tiny(tmp_path / "gpt2", "gpt2"), tmp_path)
    torch.manual_seed(3)
    take(tar(lam=0), step)
    ours = gradient_of(step)
    step.clear()
    torch.manual_seed(3)
    step.backward("train")
    assert torch.equal(ours, gradient_of(step))


def test_mapping_turns_states_and_the_last_steps_only_retain(
    tiny_folder: Path, tmp_path: Path
) -> None:
    training = {"steps": 20, "learning_rate": 1e-2, "warmup": 0}
    member = build(TAR, mapping_steps=18, sft_steps=1, training=training)
    member(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    points = read_table(tmp_path / "a" / "trajectory.parquet", TrajectoryPoint)
    mapped = [p.terms["mapped"] for p in points[:18]]
    assert mapped[-1] < mapped[0] - 0.1
    assert set(points[18].terms) == {"retain", "distance", "resist"}
    assert points[19].terms == {}


def test_trained_it_is_harder_to_attack(tiny_folder: Path, tmp_path: Path) -> None:
    """After the same attack on the same rows, the harmful loss stays higher than a control's."""
    after = {}
    for lam in (0, 4):
        member = build(
            TAR, lam=lam, resist="entropy", represent=0, inner_steps=8, every=4,
            inner_rates=[3e-3], training={"steps": 10, "learning_rate": 3e-3, "warmup": 0},
        )  # fmt: skip
        made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path / str(lam)))
        step = make(made.path, tmp_path / str(lam), batch_size=10)
        batches = [step.streams["harm"].batch(i) for i in range(8)]
        with excursion(step.parameters):
            list(fine_tune(step, batches, fresh_adamw(step.parameters, 3e-3, 0.01)))
            after[lam] = step.loss("harm")
    assert after[4] > after[0] + 0.1, after
