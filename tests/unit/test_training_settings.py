"""Hyperparameters: schedules by hand, one length, a run file's part over the method's own."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from backfire.attack import Harmful
from backfire.defend import SDD
from backfire.engine import LoRA, Training


def test_schedules_by_hand() -> None:
    """Peak 1e-3, 10 steps, no warm-up: linear is 1 - t/10, cosine (1 + cos(pi t/10))/2."""
    linear = Training(learning_rate=1e-3, steps=10, schedule="linear")
    assert [round(linear.rate(t, 10, 5) * 1e3, 6) for t in (0, 5, 9)] == [1.0, 0.5, 0.1]
    cosine = Training(learning_rate=1e-3, steps=10, schedule="cosine")
    assert cosine.rate(5, 10, 5) == pytest.approx(0.5e-3)
    assert cosine.rate(9, 10, 5) == pytest.approx(1e-3 * (1 + math.cos(0.9 * math.pi)) / 2)


def test_warm_up_rises_from_zero_to_the_peak() -> None:
    t = Training(learning_rate=1e-3, steps=10, warmup=0.2)
    assert [t.rate(s, 10, 5) for s in range(3)] == [0.0, 0.5e-3, 1e-3]


def test_epoch_decay_is_qis_schedule() -> None:
    """Three steps an epoch at 5e-5: 5e-5, then x 0.85, then x 0.85 squared."""
    t = Training(learning_rate=5e-5, epochs=3, schedule="epoch-decay")
    rates = [t.rate(s, 9, 3) for s in (0, 2, 3, 6)]
    assert rates == pytest.approx([5e-5, 5e-5, 4.25e-5, 3.6125e-5])


@pytest.mark.parametrize("lengths", [{}, {"steps": 1, "epochs": 1.0}])
def test_exactly_one_length(lengths: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="exactly one of"):
        Training(learning_rate=1e-3, **lengths)  # type: ignore[arg-type]


def test_a_part_of_training_keeps_the_methods_other_settings() -> None:
    sdd = SDD.model_validate({"training": {"learning_rate": 2e-5}})
    assert (sdd.training.learning_rate, sdd.training.steps, sdd.training.batch_size) == (
        2e-5,
        500,
        24,
    )
    short = SDD.model_validate({"training": {"epochs": 1}})
    assert (short.training.steps, short.training.epochs) == (None, 1)
    assert short.training.learning_rate == 5e-7


def test_labels_tell_the_settings_people_vary() -> None:
    assert Harmful(shots=10).label == "mft-10-full"
    part = Harmful.model_validate({"training": {"lora": {"rank": 8}}})
    assert part.label == "mft-100-lora"
    assert part.training.lora == LoRA(rank=8)
    assert Harmful(label="mine").label == "mine"
    assert SDD(reject=True).label == "sdd-reject"


def test_labels_survive_a_round_trip() -> None:
    harmful = Harmful(shots=10)
    assert Harmful.model_validate(harmful.model_dump()) == harmful
