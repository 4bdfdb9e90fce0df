"""Prices by hand: steps, tokens, FLOPs, memory, disk, and the time left."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from backfire.engine.settings import LoRA, Trained, Training
from backfire.plan import Step
from backfire.pricing import DEVICES, Pace, Size, cost, disk_bytes, known_size, size_of
from backfire.records import Cell, Role


class Some(Trained):
    name: Literal["some"] = "some"
    roles: ClassVar[tuple[Role, ...]] = ("attacker",)
    training: Training = Training(learning_rate=1e-5, steps=500, batch_size=24)


BIG = Size(weights=7_000_000_000, layers=32, width=4096, vocabulary=32_000)


def test_steps_tokens_and_flops_of_full_training() -> None:
    price = cost(Some(), BIG, {"attacker": 12_000}, tokens_per_row=200)
    assert price.steps == 500
    assert price.tokens == 500 * 24 * 200
    assert price.flops == 6 * 7e9 * 2_400_000
    # 1.008e17 / (312e12 x 0.35) s = 923 s
    assert price.hours(DEVICES["A100-80GB"]) == pytest.approx(923.08 / 3600, rel=1e-3)


def test_an_adapter_saves_the_weight_gradients_and_nearly_all_their_memory() -> None:
    counts = {"attacker": 100}
    full = cost(Some(), BIG, counts)
    adapter = cost(
        Some(training=Training(learning_rate=1e-4, steps=500, batch_size=24, lora=LoRA(rank=8))),
        BIG,
        counts,
    )
    assert adapter.flops / full.flops == pytest.approx(4 / 6)
    # Weights, gradients and two moments at 4 bytes each, against the weights alone.
    assert full.memory_bytes - adapter.memory_bytes == pytest.approx(12 * 7e9, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "batch", "drop", "epochs", "steps"),
    [(50, 10, True, 5, 25), (55, 10, True, 5, 25), (55, 10, False, 5, 30), (4, 10, True, 5, 5)],
)
def test_epochs_become_steps(rows: int, batch: int, drop: bool, epochs: int, steps: int) -> None:
    training = Training(learning_rate=1e-5, epochs=epochs, batch_size=batch, drop_last=drop)
    assert cost(Some(training=training), BIG, {"attacker": rows}).steps == steps


def test_rows_are_no_longer_than_the_length_limit() -> None:
    training = Training(learning_rate=1e-5, steps=1, batch_size=2, max_length=64)
    assert cost(Some(training=training), BIG, {"attacker": 9}, tokens_per_row=200).tokens == 128


def test_checkpointing_needs_less_memory() -> None:
    training = Training(learning_rate=1e-5, steps=1, gradient_checkpointing=True)
    plain = Training(learning_rate=1e-5, steps=1)
    assert (
        cost(Some(training=training), BIG, {}).memory_bytes
        < cost(Some(training=plain), BIG, {}).memory_bytes
    )


def test_disk_holds_what_stays_one_attacked_model_and_one_state() -> None:
    size = Size(weights=1_000_000)
    assert disk_bytes(3, size) == 4e6 * (3 + 3)
    assert disk_bytes(0, size) == 0


def test_a_folder_tells_its_own_size(tiny_folder: Path) -> None:
    from backfire.models.tiny import tiny_model

    model = tiny_model("llama")
    found = size_of(tiny_folder)
    assert found.weights == sum(p.numel() for p in model.parameters())
    assert (found.layers, found.width, found.vocabulary) == (2, 32, 261)
    assert known_size(str(tiny_folder)) == found


def test_known_names_and_unknown_ones() -> None:
    assert known_size("meta-llama/Llama-2-7b-chat-hf") == known_size("meta-llama/Llama-2-7b-hf")
    assert known_size("someone/some-model") is None


def test_the_time_left_follows_the_measured_speed() -> None:
    def step(steps: int) -> Step:
        training = Training(learning_rate=1e-5, steps=steps, batch_size=1)
        return Step("attack", str(steps), Some(training=training), "", 0, (Cell("none", "x", 0),))

    pace = Pace(BIG, {"attacker": 10})
    assert pace.seconds_left([step(5)]) is None
    pace.measured(step(10), 20.0)
    assert pace.seconds_left([step(5), step(30)]) == pytest.approx(70.0)
    pace.measured(step(10), 40.0)
    assert pace.seconds_left([step(5), step(30)]) == pytest.approx(105.0)


def test_a_point_costs_what_the_point_before_it_has_not_done() -> None:
    def step(stop: float | None) -> Step:
        training = Training(learning_rate=1e-5, steps=40, batch_size=1, stop=stop)
        cells = (Cell("none", "x", 0),)
        return Step("attack", str(stop), Some(training=training), "", 0, cells, course="one")

    assert cost(Some(training=step(0.25).member.training), BIG, {"attacker": 10}).steps == 10
    pace = Pace(BIG, {"attacker": 10})
    pace.measured(step(0.25), 20.0)  # ten steps of forty
    assert pace.seconds_left([step(0.5), step(None)]) == pytest.approx(20.0 + 40.0)
    assert pace.seconds_left([step(None)]) == pytest.approx(60.0)
