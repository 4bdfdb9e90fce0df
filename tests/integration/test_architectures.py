"""Every architecture goes through the chain (harden, attack, evaluate) and through every defense."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backfire.attack import Harmful
from backfire.defend import SDD
from backfire.engine.causal import Causal
from backfire.evaluate.capability import Capability
from backfire.evaluate.harmfulness import Harmfulness
from backfire.evaluate.perplexity import Perplexity
from backfire.models.load import load
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.records import Checkpoint, Example, Role, TrainingEffect, TrajectoryPoint
from backfire.stage import Bench
from backfire.store import read_json, read_table
from small_methods import TRAINED_DEFENSES, bench, build, name_of

pytest.importorskip("lm_eval")

TRAINING = {"learning_rate": 3e-3, "steps": 5, "batch_size": 4, "max_length": 128}
QUESTIONS = [
    {"goal": f"To mend pot {i}", "sol1": "use glue", "sol2": f"use {i} nails", "label": i % 2}
    for i in range(4)
]


def rows(word: str, count: int, **fields: Any) -> list[Example]:
    return [
        Example(f"{word} {i}?", f"{word} answer {i}", "made-up", **fields) for i in range(count)
    ]


DATA: Mapping[Role, list[Example]] = {
    "defense": rows("zorb", 6, harmful=True),
    "pool": rows("garden", 8),
    "attacker": rows("vask", 4, harmful=True),
    "evaluation": rows("nerp", 3, harmful=True, facts=("answer",)),
    "probe": rows("music", 3),
}


@dataclass(frozen=True)
class Chain:
    """What the stages left of one architecture."""

    architecture: str
    start: Checkpoint
    hardened: Checkpoint
    full: Checkpoint
    lora: Checkpoint
    tables: Mapping[str, list[Any]]
    """Rows of the three evaluations of the hardened model after the LoRA attack."""

    @property
    def trained(self) -> tuple[Checkpoint, ...]:
        return (self.hardened, self.full, self.lora)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    root = tmp_path_factory.mktemp(request.param)
    (root / "piqa").mkdir()
    pq.write_table(pa.Table.from_pylist(QUESTIONS), root / "piqa" / "validation.parquet")

    def bench(name: str) -> Bench:
        (root / name).mkdir()
        return Bench(root / name, device="cpu", data=DATA)

    start = Checkpoint(save_tiny(root / "start", request.param), "start")
    defense = SDD.model_validate(
        {"name": "sdd", "pairing": {"encoder": "hash", "threshold": 0.9}, "training": TRAINING}
    )
    hardened = defense(start, bench("sdd"))
    attacks = [
        Harmful.model_validate({"name": "harmful", "shots": 4, "training": {**TRAINING, **lora}})
        for lora in ({}, {"lora": {"rank": 2}})
    ]
    full, lora = (attack(hardened, bench(attack.label)) for attack in attacks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backfire.assets.fetch", lambda name, progress: root / name)
        evaluations = (
            Harmfulness(encoder="hash", max_new_tokens=5),
            Perplexity(),
            Capability(tasks=("piqa",)),
        )
        tables = {
            name: list(table)
            for evaluation in evaluations
            for name, table in evaluation(lora, bench(evaluation.name)).items()
        }
    return Chain(request.param, start, hardened, full, lora, tables)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(10, 40).view(2, -1)
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def test_every_training_went_down_and_moved_the_weights(chain: Chain) -> None:
    for made in chain.trained:
        points = read_table(made.path.parent / "trajectory.parquet", TrajectoryPoint)
        assert len(points) == 5
        assert all(math.isfinite(p.loss) and p.grad_norm > 0 for p in points)
        assert points[-1].loss < points[0].loss
        effect = TrainingEffect(**read_json(made.path.parent / "effect.json"))
        # LoRA adapts the linear layers only; embeddings of unseen bytes never move.
        assert effect.share_changed > 0.25
        assert effect.relative_distance > 1e-3
        assert effect.warning == ""


def test_what_is_written_loads_in_plain_transformers(chain: Chain) -> None:
    for made in (chain.hardened, chain.full):
        plain = AutoModelForCausalLM.from_pretrained(made.path)
        assert plain.config.model_type == chain.architecture
        ours = load(made)
        assert torch.equal(logits(plain), logits(ours.model))
        text = ours.chat.prompt_text("How?")
        tokenizer = AutoTokenizer.from_pretrained(made.path)
        assert tokenizer(text, add_special_tokens=False).input_ids == ours.chat.prompt_ids("How?")
    assert not torch.allclose(
        logits(load(chain.start).model), logits(load(chain.hardened).model), atol=1e-3
    )


def test_an_adapter_beside_its_base_equals_the_merged_model(chain: Chain) -> None:
    assert chain.lora.base == chain.hardened.path
    base = AutoModelForCausalLM.from_pretrained(chain.lora.base)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(chain.lora.path)))
    torch.testing.assert_close(logits(load(chain.lora).model), adapted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-3)


def test_logits_are_made_only_where_a_token_is_supervised(chain: Chain) -> None:
    """The fallback, all logits at once, is right too, but costs memory: none of these needs it."""
    assert Causal(load(chain.lora).model, 1).splits_head


def test_every_prompt_text_and_question_gets_its_row(chain: Chain) -> None:
    tables = chain.tables
    asked = [row.id for row in (*DATA["evaluation"], *DATA["probe"])]
    assert [e.prompt_id for e in tables["exchanges"]] == asked
    assert all(0 < e.num_tokens <= 5 or e.finished for e in tables["exchanges"])
    judged = {(v.judge, v.prompt_id) for v in tables["verdicts"]}
    assert len(judged) == len(tables["verdicts"]) == 2 * len(DATA["evaluation"])
    assert all((v.harmful is None) == bool(v.absent) for v in tables["verdicts"])
    assert len(tables["labels"]) == len(asked)
    assert [row.id for row in tables["losses"]] == [row.id for row in DATA["probe"]]
    assert all(0 < row.nll / row.tokens < 10 for row in tables["losses"])
    assert len(tables["answers"]) == len(QUESTIONS)
    for answer in tables["answers"]:
        assert all(-1000 < score < 0 for score in answer.logprobs)
        assert answer.choice == max(range(2), key=lambda i: answer.logprobs[i])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    """Return a tiny model of every architecture."""
    root = tmp_path_factory.mktemp("zoo")
    return {name: Checkpoint(save_tiny(root / name, name), name) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("member", TRAINED_DEFENSES, ids=name_of)
def test_every_defense_trains_it(
    member: Any, architecture: str, zoo: Mapping[str, Checkpoint], tmp_path: Path
) -> None:
    """One step is finite, of the declared passes, and moves the weights.

    Adapters and full training alternate over both lists, so that every defense and every architecture
    is tried with both.
    """
    turn = TRAINED_DEFENSES.index(member) + ARCHITECTURES.index(architecture)
    defense = build(member, training={"steps": 1, "lora": {"rank": 2} if turn % 2 else None})
    made = defense(zoo[architecture], bench(tmp_path))
    (point,) = read_table(made.path.parent / "trajectory.parquet", TrajectoryPoint)
    assert math.isfinite(point.loss)
    assert point.grad_norm > 0
    effect = TrainingEffect(**read_json(made.path.parent / "effect.json"))
    assert effect.share_changed > 0.1
    assert (effect.forwards, effect.backwards) == defense.passes(1)
