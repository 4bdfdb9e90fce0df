"""The presets of the defenses beside SDD hold the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backfire.config import load
from backfire.defend import CTRAP, SEAM, TAR, Booster, DeepAlign, RepNoise, TVaccine, Vaccine

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("preset", "member"),
    [
        ("vaccine-llama2-7b", Vaccine),
        ("t-vaccine-llama2-7b", TVaccine),
        ("repnoise-qwen1.5-1.8b", RepNoise),
        ("deep-align-llama2-7b-chat", DeepAlign),
        ("booster-llama2-7b", Booster),
        ("ctrap-gemma2-9b", CTRAP),
        ("seam-llama2-7b-chat", SEAM),
        ("tar-llama3-8b-instruct", TAR),
    ],
)
def test_what_a_preset_spells_out_is_the_methods_default(preset: str, member: Any) -> None:
    """So that neither can drift from the official script alone; memory settings aside."""
    first = load(EXPERIMENTS / f"{preset}.yaml").active_defenses[0]
    training = first.training.model_copy(update={"gradient_checkpointing": False})
    assert first.model_copy(update={"training": training}) == member()


@pytest.mark.parametrize(("preset", "batch"), [("vaccine", 5), ("t-vaccine", 10)])
def test_the_second_stage_is_the_papers(preset: str, batch: int) -> None:
    experiment = load(EXPERIMENTS / f"{preset}-llama2-7b.yaml")
    (mixed,) = (a for a in experiment.active_attacks if a.name == "mixed")
    training = mixed.training
    assert (mixed.total, mixed.poison, training.batch_size) == (1000, 0.1, batch)
    assert (training.learning_rate, training.epochs, training.weight_decay) == (1e-5, 20, 0.1)
    assert (training.lora.rank, training.lora.alpha, training.lora.dropout) == (8, 1, 0.1)
    assert experiment.data.counts.defense == 2000


def test_repnoise_is_attacked_at_the_three_rates_used_with_it() -> None:
    for model in ("qwen1.5-1.8b", "llama2-7b-chat"):
        attacks = load(EXPERIMENTS / f"repnoise-{model}.yaml").active_attacks
        rates = [a.training.learning_rate for a in attacks if a.name == "harmful"]
        assert rates == [3e-5, 6e-5, 8e-5]


def test_booster_is_compared_at_the_settings_of_its_scripts() -> None:
    experiment = load(EXPERIMENTS / "booster-llama2-7b.yaml")
    for defense in experiment.active_defenses:
        training = defense.training
        assert (training.learning_rate, training.epochs, training.schedule) == (
            5e-4,
            20,
            "constant",
        )
        assert (training.lora.rank, training.lora.alpha, training.lora.dropout) == (32, 4, 0)
        assert training.batch_size == (5 if defense.name == "repnoise" else 10)
        assert training.warmup == 0
    named = {defense.label: defense for defense in experiment.active_defenses}
    assert (named["vaccine"].rho, named["repnoise"].alpha) == (5, 0.1)
    assert named["booster-perturb-aware"].perturb == 5
    (mixed,) = (a for a in experiment.active_attacks if a.name == "mixed")
    training = mixed.training
    assert (mixed.total, mixed.poison, training.batch_size) == (1000, 0.1, 10)
    assert (training.learning_rate, training.epochs, training.schedule) == (1e-5, 20, "constant")


def test_ctrap_is_attacked_with_harmful_mixed_and_benign_rows() -> None:
    attacks = load(EXPERIMENTS / "ctrap-gemma2-9b.yaml").active_attacks
    assert [a.shots for a in attacks if a.name == "harmful"] == [100, 300, 500]
    assert {a.name for a in attacks} >= {"harmful", "mixed", "benign"}
    ways = {
        (t.learning_rate, t.epochs, t.batch_size, t.weight_decay, t.schedule, t.clip_norm, t.lora)
        for t in (a.training for a in attacks if a.name != "none")
    }
    (way,) = ways
    assert way[:-1] == (1e-5, 20, 10, 0.1, "constant", 1)


def test_seam_is_attacked_at_five_rates() -> None:
    experiment = load(EXPERIMENTS / "seam-llama2-7b-chat.yaml")
    attacks = [a for a in experiment.active_attacks if a.name == "harmful"]
    assert [a.training.learning_rate for a in attacks] == [2e-5, 5e-5, 8e-5, 1e-4, 2e-4]
    assert {(a.shots, a.training.epochs, a.training.batch_size) for a in attacks} == {(1000, 1, 4)}
    assert experiment.data.counts.defender_harm == experiment.data.counts.pool == 8000


def test_tar_ends_with_fine_tuning_once_and_is_attacked_five_ways() -> None:
    experiment = load(EXPERIMENTS / "tar-llama3-8b-instruct.yaml")
    named = {defense.label: defense for defense in experiment.active_defenses}
    whole, short = named["tar-then-sft"], named["tar"]
    assert (whole.training.steps, whole.sft_steps) == (200, 100)
    for defense in (whole, short):
        assert defense.training.warmup * defense.training.steps == 32
    assert named["retain-only"].passes(10) == (20, 10)
    ways = [
        (a.training.learning_rate, a.training.batch_size, round(160 * a.training.warmup))
        for a in experiment.active_attacks
        if a.name == "harmful"
    ]
    assert ways == [(1e-5, 32, 0), (1e-5, 32, 10), (1e-5, 16, 0), (2e-5, 32, 0), (4e-5, 32, 0)]
