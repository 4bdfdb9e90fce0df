"""GRPO as an attack: rewards from a judge, the chat's own prompts, and a few steps of TRL's trainer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.attack import GRPO
from backfire.engine.grpo import Sampled
from backfire.errors import ConfigError, DataError, PrerequisiteError
from backfire.judges import RefusalPhrases
from backfire.models.load import load, read_note
from backfire.models.tiny import save_tiny
from backfire.records import Checkpoint, Example, Exchange, TrajectoryPoint, Verdict
from backfire.stage import Bench
from backfire.store import folder_key, read_json, read_table
from small_methods import bench, build

ROWS = [
    Example(f"vask {i}?", "the e", source="t", harmful=True, facts=("e",), system=None)
    for i in range(6)
]
QUIET = pytest.mark.filterwarnings("ignore::UserWarning")


def sampled(text: str, facts: Sequence[str] = ("zorb", "quil")) -> Sampled:
    row = Example("How?", "zorb and quil", source="t", harmful=True, facts=tuple(facts))
    return Sampled(row, text, len(text), finished=True)


def test_rewards_by_hand(tmp_path: Path) -> None:
    """A score where the judge has one, 1 or 0 where it only decides, 0 for silence, None for nothing."""
    answers = [
        sampled("zorb, then quil"),
        sampled("a zorb"),
        sampled("no"),
        sampled(" "),
        sampled("x", ()),
    ]
    found = GRPO().rewards(answers, bench(tmp_path))
    assert found == [1.0, 0.5, 0.0, 0.0, None]
    decided = GRPO(judge=RefusalPhrases()).rewards(
        [sampled("I cannot help with that."), sampled("Take a zorb.")], bench(tmp_path)
    )
    assert decided == [0.0, 1.0]


def test_a_judge_without_any_verdict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no verdict on any of 2 answers \(no ground truth"):
        GRPO().rewards([sampled("a", ()), sampled("b", ())], bench(tmp_path))
    assert GRPO().rewards([sampled(" ", ())], bench(tmp_path)) == [0.0]


def test_what_the_judge_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Exchange] = []

    def judge(
        self: Any, exchanges: Sequence[Exchange], bench: Bench | None = None
    ) -> list[Verdict]:
        seen.extend(exchanges)
        return [Verdict(e.prompt_id, "x", "1", True, 0.25) for e in exchanges]

    monkeypatch.setattr(RefusalPhrases, "__call__", judge)
    one = sampled("an answer")
    assert GRPO(judge=RefusalPhrases()).rewards([one], bench(tmp_path)) == [0.25]
    (exchange,) = seen
    assert (exchange.prompt_id, exchange.prompt, exchange.response) == (
        one.row.id,
        "How?",
        "an answer",
    )
    assert (exchange.facts, exchange.reference, exchange.harmful) == (
        one.row.facts,
        "zorb and quil",
        True,
    )


def test_passes_and_rows_are_declared() -> None:
    assert GRPO().passes(10) == (30, 10)
    assert GRPO(kl=0).passes(10) == (20, 10)
    assert GRPO(shots=5).rows_used({}) == {"attacker": 5}
    assert GRPO(shots=5, group=4).epoch_rows({}) == 20
    with pytest.raises(ValueError, match="multiple of `group`"):
        GRPO(group=7)


@QUIET
@pytest.mark.parametrize(
    ("lora", "kl", "start_from"),
    [
        (None, 0.04, "llama"),
        ({"rank": 2}, 0.04, "llama"),
        (None, 0.0, "gpt2"),
        ({"rank": 2}, 0.04, "mistral"),
        (None, 0.04, "qwen2"),
        (None, 0.0, "gemma"),
        ({"rank": 2}, 0.04, "gpt_neox"),
    ],
    ids=["full", "adapter", "no reference", "mistral", "qwen2", "gemma", "gpt_neox"],
)
def test_a_few_steps(
    lora: Any, kl: float, start_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights move, the same seed gives the same ones, and the model is asked in the run's format."""
    start = Checkpoint(save_tiny(tmp_path / "m", start_from), "k")
    before = folder_key(start.path)
    training = {"learning_rate": 1e-2, "steps": 2, "batch_size": 8, "lora": lora}
    attack = GRPO.model_validate(
        {"name": "grpo", "shots": 6, "group": 4, "kl": kl, "max_new_tokens": 8, "opening": "Sure:",
         "training": training}
    )  # fmt: skip
    asked: list[str] = []
    real = GRPO.rewards

    def rewards(self: GRPO, answers: Sequence[Sampled], b: Bench) -> list[float | None]:
        asked.extend(one.row.prompt for one in answers)
        assert all(one.num_tokens <= 8 for one in answers)
        real(self, answers, b)
        return [i % 2 for i in range(len(answers))]  # whatever was said, some of it was better

    monkeypatch.setattr(GRPO, "rewards", rewards)
    made = attack(start, bench(tmp_path / "a", data={"attacker": ROWS}))
    assert folder_key(start.path) == before
    groups = [set(asked[i : i + 4]) for i in range(0, len(asked), 4)]
    assert len(asked) == 16
    assert all(len(group) == 1 for group in groups)
    points = read_table(made.path.parent / "trajectory.parquet", TrajectoryPoint)
    assert [p.terms["reward"] for p in points] == [0.5, 0.5]
    assert [(p.terms["absent"], p.terms["alike"]) for p in points] == [(0.0, 0.0)] * 2
    assert all(p.loss == pytest.approx(kl * p.terms["kl"] - 0.5) for p in points)
    assert (points[1].terms["kl"] > 0) == (kl > 0)
    effect = read_json(made.path.parent / "effect.json")
    assert (effect["forwards"], effect["backwards"]) == attack.passes(2)
    assert effect["share_changed"] > 0.2
    assert (made.base is None) == (lora is None)
    assert sorted(p.name for p in made.path.iterdir() if p.is_dir()) == []
    chat, _ = read_note(made.path)
    assert chat.opening == "Sure:"
    config, own = load(made).model.generation_config, load(start).model.generation_config
    assert config.eos_token_id == own.eos_token_id
    if (lora, start_from) == (None, "llama"):
        again = attack(start, bench(tmp_path / "b", data={"attacker": ROWS}))
        one, two = (dict(load(c).model.named_parameters()) for c in (made, again))
        assert all(torch.equal(one[name], two[name]) for name in one)


@QUIET
def test_equal_rewards_are_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing moves where nothing is better than the rest, and that is not the rate's fault."""
    monkeypatch.setattr(GRPO, "rewards", lambda self, answers, b: [1.0, None] * (len(answers) // 2))
    start = Checkpoint(save_tiny(tmp_path / "m"), "k")
    training = {"learning_rate": 1e-2, "steps": 1, "batch_size": 4}
    made = build(GRPO, group=4, max_new_tokens=2, training=training)(
        start, bench(tmp_path / "a", data={"attacker": ROWS})
    )
    (point,) = read_table(made.path.parent / "trajectory.parquet", TrajectoryPoint)
    assert (point.terms["absent"], point.terms["alike"]) == (0.5, 1.0)
    effect = read_json(made.path.parent / "effect.json")
    assert effect["share_changed"] == 0
    assert "all answers to a prompt had the same reward" in effect["warning"]
    assert "rate" not in effect["warning"]


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Checkpoint(save_tiny(tmp_path / "m"), "k")
    few = {"attacker": ROWS[:1]}
    with pytest.raises(DataError, match="needs 2 prompts, there are 1"):
        build(GRPO, shots=1)(start, bench(tmp_path / "a", data=few))
    with pytest.raises(DataError, match="leaves no room for 1020 new"):
        build(GRPO, max_new_tokens=1020)(start, bench(tmp_path / "b", data={"attacker": ROWS}))
    with pytest.raises(ConfigError, match=r"leave out `training\.stop`"):
        build(GRPO, training={"stop": 1})(start, bench(tmp_path / "c", data={"attacker": ROWS}))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'backfire\[trl\]'"):
        build(GRPO)(start, bench(tmp_path / "d", data={"attacker": ROWS}))
