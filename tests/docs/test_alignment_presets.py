"""The presets of Vaccine, T-Vaccine, RepNoise and DeepAlign hold the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backfire.config import load
from backfire.defend import DeepAlign, RepNoise, TVaccine, Vaccine

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("preset", "member"),
    [
        ("vaccine-llama2-7b", Vaccine),
        ("t-vaccine-llama2-7b", TVaccine),
        ("repnoise-qwen1.5-1.8b", RepNoise),
        ("deep-align-llama2-7b-chat", DeepAlign),
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
