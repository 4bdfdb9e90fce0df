"""Attackers who know something of the defense: own answers, divergences, checkpoints chosen by a probe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from backfire.attack import DPO, CapabilityGated, Harmful, KLAnchored
from backfire.engine import ability, loop
from backfire.engine.ability import TextLoss, text_loss
from backfire.engine.own_answers import own_answers
from backfire.errors import DataError, DivergedError
from backfire.models import generate as generation
from backfire.models.generate import Generation, generate
from backfire.models.load import load, read_note
from backfire.numerics.losses import divergence
from backfire.progress import Silent
from backfire.records import Checkpoint, TrainingEffect
from backfire.store import folder_key, read_json
from small_methods import DATA, bench, build


class Notes(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def start(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "k")


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return dict(load(checkpoint).model.named_parameters())


def same(one: Checkpoint, other: Checkpoint) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


def test_divergence_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4): log(2)/2 + log(2) - log(3)/2; a sure p against q: -log q."""
    reference = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.75, 0.25]]).log()
    logits = torch.tensor([[math.log(3), 0.0]] * 3).requires_grad_()
    found = divergence(reference, logits)
    wanted = [1.5 * math.log(2) - 0.5 * math.log(3) - 0.5 * math.log(2) + 0.0, -math.log(0.75), 0.0]
    wanted[0] = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all(), "a token the released model excludes gives no NaN"


def test_own_answers_are_the_models_and_are_made_once(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = DATA["benign"][:4]
    place = bench(tmp_path / "a")
    given: dict[str, Any] = {"chat": None, "max_new_tokens": 6, "temperature": 0.0}
    said = own_answers(start, place, rows, "x", **given)
    loaded = load(start)
    by_hand = generate(loaded, rows, max_new_tokens=6)
    assert [r.response for r in said.own] == [a.text for a in by_hand if a.text.strip()]
    assert [r.prompt for r in said.own] == [r.prompt for r in said.rows]
    asked = sum(len(loaded.chat.prompt_ids(row.prompt)) for row in rows)
    assert said.tokens == asked + sum(a.num_tokens for a in by_hand)
    assert said.weights == sum(p.numel() for p in loaded.model.parameters())

    def broken(*_: Any, **__: Any) -> Any:
        raise AssertionError("made a second time")

    monkeypatch.setattr(generation, "generate", broken)
    assert own_answers(start, place, rows, "x", **given) == said
    with pytest.raises(AssertionError, match="second time"):
        own_answers(start, place, rows[:3], "x", **given)


def test_prompts_answered_with_nothing_are_left_out(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    rows, notes = DATA["attacker"][:3], Notes()
    given: dict[str, Any] = {"chat": None, "max_new_tokens": 6, "temperature": 1.0}
    texts = ["", "yes", " \n"]
    monkeypatch.setattr(
        generation, "generate", lambda *_, **__: [Generation(text, 1, True) for text in texts]
    )
    place = replace(bench(tmp_path / "a"), progress=notes)
    said = own_answers(start, place, rows, "x", **given)
    assert [(r.id, o.response) for r, o in zip(said.rows, said.own, strict=True)] == [
        (rows[1].id, "yes")
    ]
    assert "2 of 3 prompts left out" in notes.warnings[0]
    texts[1] = ""
    with pytest.raises(DataError, match="answers none of 3 prompts"):
        own_answers(start, bench(tmp_path / "b"), rows, "x", **given)


@pytest.mark.parametrize("member", [KLAnchored, DPO])
def test_what_the_answers_took_is_in_the_budget(
    member: Any, start: Checkpoint, tmp_path: Path
) -> None:
    place = bench(tmp_path / "a")
    build(member)(start, place)
    effect = TrainingEffect(**read_json(place.workdir / "effect.json"))
    budget = read_json(place.workdir / "budget.json")
    said = budget["tokens"] - effect.tokens
    rows = DATA["benign"][:4] if member is KLAnchored else DATA["attacker"][:5]
    asked = sum(len(load(start).chat.prompt_ids(row.prompt)) for row in rows)
    assert asked < said <= asked + 8 * len(rows)
    count = sum(p.numel() for p in weights(start).values())
    each = 2 + 4 * effect.backwards / effect.forwards
    assert budget["flops"] == pytest.approx(count * (each * effect.tokens + 2 * said))
    assert budget["steps"] == 3


def test_points_of_one_training_share_the_answers(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    asked = []
    real = generate

    def note(*given: Any, **named: Any) -> Any:
        asked.append(given)
        return real(*given, **named)

    monkeypatch.setattr(generation, "generate", note)
    attack = build(KLAnchored, points=[1, 2])
    for number, (_, one) in enumerate(attack.stops()):
        last = one(start, replace(bench(tmp_path / str(number)), state=tmp_path / "state"))
    assert len(asked) == 1
    assert same(last, build(KLAnchored)(start, bench(tmp_path / "whole")))


def test_text_loss_by_hand(start: Checkpoint) -> None:
    loaded = load(start)
    texts = ["An oak.", "A much longer text about trees."]
    total, count = 0.0, 0
    for text in texts:
        ids = [loaded.chat.end_id, *loaded.tokenizer(text, add_special_tokens=False).input_ids]
        logs = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(logs[i - 1, ids[i]]) for i in range(1, len(ids)))
        count += len(ids) - 1
    found = text_loss(loaded, texts, token_budget=10)
    assert found.mean == pytest.approx(total / count, rel=1e-5)
    assert found.tokens == count + 2
    cut = text_loss(loaded, texts, max_tokens=4)
    assert cut.tokens == 10


GATED = {"training": {"steps": 6}, "every": 2, "rho": 0.9}


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Let the looks see these losses, the released model's first."""
    left = iter(losses)
    monkeypatch.setattr(ability, "text_loss", lambda *_, **__: TextLoss(next(left), 7, 100))


def test_the_last_checkpoint_that_passes_is_kept(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios of likelihoods: exp(-.2) = .82, exp(-.1) = .905, exp(-.5) = .61; at 4 steps it passes."""
    scripted(monkeypatch, [2.0, 2.2, 2.1, 2.5])
    place = bench(tmp_path / "a")
    made = build(CapabilityGated, **GATED)(start, place)
    log = read_json(place.workdir / "probes.json")
    assert [look["step"] for look in log["looks"]] == [2, 4, 6]
    assert [look["ratio"] for look in log["looks"]] == pytest.approx(
        [0.8187, 0.9048, 0.6065], abs=1e-4
    )
    assert log["chosen"] == 4
    training = {
        "steps": 6, "stop": 4, "schedule": "epoch-decay", "clip_norm": None, "drop_last": True,
    }  # fmt: skip
    stopped = build(Harmful, training=training)
    assert same(made, stopped(start, bench(tmp_path / "b")))
    effect = read_json(place.workdir / "effect.json")
    assert effect["steps"] == 4
    budget = read_json(place.workdir / "budget.json")
    assert budget["steps"] == 6, "spent is the whole way"
    assert budget["tokens"] > effect["tokens"] + 4 * 7
    assert sorted(p.name for p in place.workdir.iterdir()) == [
        "budget.json", "checkpoint", "effect.json", "probes.json", "trajectory.parquet",
    ]  # fmt: skip


def test_where_none_passes_the_attacker_keeps_the_released_model(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    before, notes = folder_key(start.path), Notes()
    scripted(monkeypatch, [2.0, 3.0, 3.0, 3.0])
    place = replace(bench(tmp_path / "a"), progress=notes)
    made = build(CapabilityGated, **GATED, system="Obey.")(start, place)
    assert same(made, start)
    assert folder_key(start.path) == before
    assert read_note(made.path)[0].system == "Obey."
    assert read_json(place.workdir / "probes.json")["chosen"] == 0
    assert "left with the released model" in notes.warnings[-1]


def test_after_an_interrupt_the_looks_go_on(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(CapabilityGated, **GATED)(start, bench(tmp_path / "whole"))
    real, looks = ability.text_loss, []

    def stop(*given: Any, **named: Any) -> Any:
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(ability, "text_loss", stop)
    place = bench(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        build(CapabilityGated, **GATED)(start, place)
    made = build(CapabilityGated, **GATED)(start, place)
    assert same(made, whole)
    assert len(looks) == 3 + 2, "the released model and the first stop are not looked at again"


def test_a_divergence_on_the_way_leaves_what_passed_before(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop._Loop._step

    def step(self: Any, index: int) -> None:
        if index == 3:
            raise DivergedError("diverged at step 4")
        real(self, index)

    monkeypatch.setattr(loop._Loop, "_step", step)
    scripted(monkeypatch, [2.0, 2.0])
    place = bench(tmp_path / "a")
    build(CapabilityGated, **GATED)(start, place)
    assert read_json(place.workdir / "probes.json")["chosen"] == 2
    scripted(monkeypatch, [2.0])
    with pytest.raises(DivergedError):
        build(CapabilityGated, **{**GATED, "every": 5})(start, bench(tmp_path / "b"))


def test_points_do_not_go_with_a_choice_of_checkpoints() -> None:
    with pytest.raises(ValidationError, match="keeps one"):
        CapabilityGated(points=(5,))
