"""Vaccine and T-Vaccine: the drift is the worst one of its length, and rests where it should."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backfire.defend import TVaccine, Vaccine
from backfire.defend.t_vaccine import _DrawnLayers
from backfire.engine import drift, loop
from backfire.engine.primitives import Step, perturb
from backfire.engine.rows import alignment, rows_of
from backfire.errors import TrainingError
from backfire.models.load import load
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint
from by_hand import gradient_of, step_of
from small_methods import bench, build


def vaccine(**over: Any) -> Vaccine:
    return Vaccine.model_validate({"name": "vaccine", **over})


def t_vaccine(**over: Any) -> TVaccine:
    return TVaccine.model_validate({"name": "t_vaccine", "layers": 1, **over})


def make(folder: Path, place: Path, **over: Any) -> Step:
    here = bench(place)
    rows = {"train": alignment(here, 0, "x"), "harm": rows_of(here, "defender_harm", None, "x")}
    return step_of(folder, rows, **over)


@pytest.fixture
def step(tiny_folder: Path, tmp_path: Path) -> Step:
    return make(tiny_folder, tmp_path)


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of four layers."""
    return save_tiny(tmp_path_factory.mktemp("deep") / "llama", layers=4)


@pytest.fixture
def drifts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Any], list[torch.Tensor]]]:
    """Fills up with the modules and the shifts of every micro-batch that is perturbed."""
    seen: list[tuple[list[Any], list[torch.Tensor]]] = []

    def note(modules: Any, shifts: Any) -> Any:
        seen.append((list(modules), [shift.clone() for shift in shifts]))
        return perturb(modules, shifts)

    monkeypatch.setattr(drift, "perturb", note)
    return seen


def norm_of(drifts: list[tuple[list[Any], list[torch.Tensor]]]) -> float:
    return float(torch.cat([s.flatten() for _, shifts in drifts for s in shifts]).norm())


@pytest.mark.parametrize(
    ("architecture", "budget"), [("llama", 8), ("llama", 4096), ("gpt2", 8), ("opt", 8)]
)
def test_the_drift_is_rho_times_the_normalised_slope_of_the_whole_batch(
    architecture: str, budget: int, drifts: list[Any], tmp_path: Path
) -> None:
    """However the batch is cut; the slopes are found here with a hook and one padded batch."""
    folder = save_tiny(tmp_path / architecture, architecture)
    step = make(folder, tmp_path, token_budget=budget)
    step.model.eval()  # no dropout, so that both see the same
    vaccine(rho=0.7).step(step)
    assert norm_of(drifts) == pytest.approx(0.7, abs=1e-4)

    (whole,) = step.batches["train"].micro(1 << 20)
    outputs: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [m.register_forward_hook(keep) for m in step.causal.attentions]
    logits = step.causal.model(whole.ids).logits.flatten(0, 1)[whole.positions]
    for handle in handles:
        handle.remove()
    loss = torch.nn.functional.cross_entropy(logits, whole.targets)
    slopes = torch.autograd.grad(loss, outputs)
    length = torch.stack([slope.norm() for slope in slopes]).norm()
    wanted = sorted(
        tuple(0.7 * float(slope[row].norm() / length) for slope in slopes)
        for row in range(len(whole.ids))
    )
    found = sorted(
        tuple(float(shift[row].norm()) for shift in shifts)
        for _, shifts in drifts
        for row in range(len(shifts[0]))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_pads_do_not_drift(step: Step, drifts: list[Any]) -> None:
    vaccine().step(step)
    (part,) = step.batches["train"].micro(2048)
    for shift in drifts[0][1]:
        assert bool((shift[~part.real] == 0).all())
        assert bool((shift[part.real] != 0).any())


def test_the_loss_rises_by_rho_times_the_slope_to_first_order(
    tiny_folder: Path, tmp_path: Path
) -> None:
    errors = []
    for rho in (1, 0.3, 0.1):
        terms = vaccine(rho=rho).step(make(tiny_folder, tmp_path, double=True))
        rise = terms["loss"] - terms["clean"]
        assert rise > 0
        errors.append(abs(rise / (rho * terms["slope"]) - 1))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_no_other_drift_of_this_length_is_as_bad(step: Step, drifts: list[Any]) -> None:
    terms = vaccine(rho=0.1).step(step)
    (modules, shifts), *_ = drifts
    length = norm_of(drifts)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = [torch.randn(shift.shape, generator=draw) for shift in shifts]
        scale = length / torch.cat([o.flatten() for o in other]).norm()
        with perturb(modules, [scale * o for o in other]):
            assert step.loss("train") < terms["loss"]


def test_it_takes_two_passes_and_their_dropout_masks_are_one(tmp_path: Path) -> None:
    step = make(save_tiny(tmp_path / "gpt2", "gpt2"), tmp_path)
    terms = vaccine(rho=0).step(step)
    assert terms["loss"] == terms["clean"]
    assert (step.passes.forwards, step.passes.backwards) == (2, 2) == vaccine().passes(1)


@pytest.mark.parametrize("kind", ["worst", "gaussian"])
def test_recomputed_activations_drift_alike(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    found = []
    for recompute in (False, True):
        step = make(tiny_folder, tmp_path)
        if recompute:
            step.causal.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        settings = vaccine(drift=kind, rho=0.5)
        (settings.step if kind == "worst" else settings.random_step)(step)
        found.append(gradient_of(step))
    torch.testing.assert_close(found[1], found[0])


def test_random_noise_has_variance_rho_and_takes_one_pass(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    noises: list[Any] = []

    def note(modules: Any, shifts: Any) -> Any:
        noises.extend(shifts)
        return perturb(modules, shifts)

    monkeypatch.setattr("backfire.engine.primitives.perturb", note)
    settings = vaccine(drift="gaussian", rho=4)
    torch.manual_seed(0)
    noisy = settings.random_step(step)["loss"]
    assert (step.passes.forwards, step.passes.backwards) == (1, 1) == settings.passes(1)
    assert noisy != pytest.approx(step.loss("train"), abs=1e-3)
    draw = noises[0](torch.zeros(300, 300))
    assert float(draw.mean()) == pytest.approx(0, abs=0.03)
    assert float(draw.var()) == pytest.approx(4, rel=0.03)
    assert settings.label == "vaccine-gaussian"


def test_outputs_before_any_trained_weight_drift_too(step: Step, drifts: list[Any]) -> None:
    """An adapter in the last block alone leaves no gradient of its own at the first one's output."""
    last = set(step.causal.blocks[-1].parameters())
    for parameter in step.parameters:
        parameter.requires_grad_(parameter in last)
    step.parameters = [p for p in step.parameters if p in last]
    vaccine(rho=1).step(step)
    assert float(drifts[0][1][0].norm()) > 0
    assert norm_of(drifts) == pytest.approx(1, abs=1e-4)


def test_training_makes_the_model_lose_less_under_drift(tiny_folder: Path, tmp_path: Path) -> None:
    rises = {}
    for rho in (0.0, 0.3):
        member = build(Vaccine, rho=rho, benign_share=0, training={"steps": 20, "weight_decay": 0})
        made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path / str(rho)))
        terms = vaccine(rho=0.3).step(make(made.path, tmp_path, batch_size=10))
        rises[rho] = terms["loss"] - terms["clean"]
    assert rises[0.3] < rises[0.0]


# T-Vaccine


def test_all_layers_drawn_and_nothing_frozen_is_vaccine(tiny_folder: Path, tmp_path: Path) -> None:
    one, other = make(tiny_folder, tmp_path), make(tiny_folder, tmp_path)
    _DrawnLayers(t_vaccine(layers=2, freeze="nothing", rho=2))(one)
    vaccine(rho=2).step(other)
    assert torch.equal(gradient_of(one), gradient_of(other))


def test_the_drawn_layers_alone_drift_by_rho_together(
    deep_folder: Path, drifts: list[Any], tmp_path: Path
) -> None:
    step = make(deep_folder, tmp_path)
    objective = _DrawnLayers(t_vaccine(layers=2, rho=3))
    objective(step)
    drawn = objective.memory["drawn"]
    assert len(drawn) == 2
    for modules, shifts in drifts:
        assert modules == [step.causal.attentions[i] for i in drawn]
        assert all(float(shift.norm()) > 0 for shift in shifts)
    assert norm_of(drifts) == pytest.approx(3, abs=1e-4)


def test_importance_is_each_layers_share_of_the_slopes(deep_folder: Path, tmp_path: Path) -> None:
    """Of the harmful row whose turn it is, whatever the order of its epoch."""
    step = make(deep_folder, tmp_path, batch_size=1, index=6)
    objective = _DrawnLayers(t_vaccine(refresh_every=3))
    objective(step)
    shares = objective.memory["importance"]
    assert sum(shares) == pytest.approx(1)
    (row,) = step.streams["harm"].batch(2).micro(4096)
    outputs: list[torch.Tensor] = []
    handles = [
        m.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
        for m in step.causal.attentions
    ]
    loss = step.causal.losses(row).mean()
    for handle in handles:
        handle.remove()
    norms = torch.stack([g.norm() for g in torch.autograd.grad(loss, outputs)])
    assert shares == pytest.approx((norms / norms.sum()).tolist(), rel=1e-4)


def test_inclusion_frequencies_are_those_of_successive_draws() -> None:
    """Worked out by going through all ordered pairs; the more important, the oftener."""
    shares = [0.1, 0.2, 0.3, 0.4]
    exact = np.zeros(4)
    for first, second in itertools.permutations(range(4), 2):
        chance = shares[first] * shares[second] / (1 - shares[first])
        exact[[first, second]] += chance
    objective = _DrawnLayers(t_vaccine(layers=2, redraw_every=1))
    objective.memory["importance"] = shares
    counts, draws = np.zeros(4), 4000
    for index in range(draws):
        drawn = objective._draw(SimpleNamespace(seed=7, index=index))  # type: ignore[arg-type]
        assert len(set(drawn)) == 2
        counts[drawn] += 1
    spread = np.sqrt(exact * (1 - exact) / draws)
    assert (np.abs(counts / draws - exact) < 4 * spread).all()
    assert (np.diff(counts) > 0).all()


def test_draws_depend_on_seed_and_turn_alone() -> None:
    objective = _DrawnLayers(t_vaccine(layers=2, redraw_every=10))
    objective.memory["importance"] = [0.1] * 10

    def drawn(seed: int, index: int) -> list[int]:
        return objective._draw(SimpleNamespace(seed=seed, index=index))  # type: ignore[arg-type]

    assert drawn(0, 20) == drawn(0, 29)
    assert len({tuple(drawn(0, 10 * turn)) for turn in range(20)}) > 5
    assert len({tuple(drawn(seed, 0)) for seed in range(20)}) > 5


def test_more_layers_than_have_a_slope_are_refused(step: Step) -> None:
    with pytest.raises(TrainingError, match=r"`layers` is 3.* 2 layers .*set it to 2 or fewer"):
        _DrawnLayers(t_vaccine(layers=3))(step)
    objective = _DrawnLayers(t_vaccine(layers=2))
    objective.memory["importance"] = [1.0, 0.0]
    with pytest.raises(TrainingError, match="set it to 1"):
        objective._draw(step)


def test_importance_costs_a_pass_whenever_it_is_measured() -> None:
    settings = t_vaccine()
    assert settings.passes(200) == (401, 401)
    assert settings.passes(201) == (404, 404)
    assert settings.rows_used({"defense": 9, "defender_harm": 500}) == {
        "defense": 9, "defender_harm": 200, "pool": 0,
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["attention", "block", "nothing"])
def test_layers_not_drawn_rest_bit_for_bit(
    scope: str, deep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those drawn before, too, which have momentum, and all of them under weight decay."""
    states: list[tuple[dict[str, torch.Tensor], list[int]]] = []
    real = loop._Loop._watch

    def note(self: Any) -> None:
        values = {name: p.detach().clone() for name, p in self.loaded.model.named_parameters()}
        states.append((values, self.objective.memory["drawn"]))
        real(self)

    monkeypatch.setattr(loop._Loop, "_watch", note)
    member = build(
        TVaccine,
        layers=1,
        freeze=scope,
        redraw_every=2,
        training={"steps": 8, "weight_decay": 0.1, "warmup": 0},
    )
    member(Checkpoint(deep_folder, "k"), bench(tmp_path / "a"))
    draws = [tuple(drawn) for _, drawn in states[1:]]
    assert draws[::2] == draws[1::2], "a draw holds for two steps"
    assert len(set(draws)) > 1
    for (before, _), (after, drawn) in itertools.pairwise(states):
        for name, value in after.items():
            part = name.split(".")
            inner = part[1] == "layers" and int(part[2]) not in drawn
            resting = inner and (
                scope == "block" or (scope == "attention" and part[3] == "self_attn")
            )
            assert torch.equal(before[name], value) == resting, name


def test_a_resume_goes_on_with_the_layers_that_were_drawn(
    deep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though importance has been measured anew since the draw."""
    start = Checkpoint(deep_folder, "k")
    member = build(TVaccine, layers=2, redraw_every=10, refresh_every=2, training={"steps": 4})
    whole = load(member(start, bench(tmp_path / "whole"))).model
    real = loop._Loop._watch

    def stop(self: Any) -> None:
        if len(self.points) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_watch", stop)
        with pytest.raises(KeyboardInterrupt):
            member(start, bench(tmp_path / "parts"))
    parts = load(member(start, bench(tmp_path / "parts"))).model
    pairs = zip(whole.parameters(), parts.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
