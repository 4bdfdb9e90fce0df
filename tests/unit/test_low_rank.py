"""The adapter inside a step: PEFT's training of one, without PEFT's modules."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backfire.engine.inner import fine_tune
from backfire.engine.low_rank import LowRank
from backfire.engine.primitives import Step, excursion
from backfire.engine.settings import LoRA
from backfire.errors import ConfigError
from backfire.models.tiny import save_tiny
from backfire.records import Example
from backfire.seeding import torch_generator
from by_hand import step_of

RATE, STEPS = 1e-2, 4
ROWS = [Example(f"question {i}", f"answer {i * 7}" + " indeed" * (i % 3)) for i in range(8)]


def make(folder: Path) -> Step:
    return step_of(folder, {"train": ROWS}, batch_size=3)


def batches(step: Step, count: int = STEPS) -> list[Any]:
    return [step.streams["train"].batch(i) for i in range(count)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_the_weights_are_those_of_a_merged_peft_adapter(
    architecture: str, targets: str, tmp_path: Path
) -> None:
    """PEFT trains its adapter with AdamW from the same A; GPT-2 keeps its matrices the other way round."""
    save_tiny(tmp_path, architecture)
    some = {"llama": ("q_proj", "down_proj"), "gpt2": ("attn.c_attn", "c_fc")}[architecture]
    lora = LoRA(rank=3, alpha=5, targets="all-linear" if targets == "all-linear" else some)
    step = make(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=5, lora_dropout=0, bias="none",
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        fan_in_fan_out=architecture == "gpt2",
    )  # fmt: skip
    peft = get_peft_model(model, config).eval()  # no dropout of GPT-2's own
    adapters = sum("lora_A" in name for name, _ in peft.named_parameters())
    draw = torch_generator(step.seed, "adapter", step.index)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_A" in name:
                parameter.uniform_(-1, 1, generator=draw).div_(math.sqrt(parameter.shape[1]))
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
    for batch in batches(step):
        optimizer.zero_grad()
        losses = []
        for row in batch.rows:
            logs = peft(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            losses += [-logs[i - 1, row.ids[i]] for i in row.supervised]
        torch.stack(losses).mean().backward()
        optimizer.step()
    theirs = dict(peft.merge_and_unload().named_parameters())
    names = [name.removeprefix("model.") for name, _ in step.causal.named_parameters()]
    step.model.eval()
    with excursion(step.parameters) as start:
        list(fine_tune(step, batches(step), LowRank(step, start, lora, RATE)))
        moved = 0
        for name, before, now in zip(names, start, step.parameters, strict=True):
            way = theirs[name].detach() - before
            assert (now - before - way).norm() <= 1e-3 * way.norm(), name
            moved += bool(way.any())
    assert moved == adapters


def test_the_head_norms_and_embeddings_stay(tiny_folder: Path) -> None:
    step = make(tiny_folder)
    with excursion(step.parameters) as start:
        list(fine_tune(step, batches(step), LowRank(step, start, LoRA(rank=2), RATE)))
        moved = {
            name
            for (name, p), was in zip(step.causal.named_parameters(), start, strict=True)
            if not torch.equal(p, was)
        }
    assert moved == {
        name for name, _ in step.causal.named_parameters() if name.endswith("_proj.weight")
    }


def test_it_holds_no_moments_of_the_weights_size(tiny_folder: Path) -> None:
    """While it attacks there is the copy to come back to, and no other of a matrix's shape."""
    step = make(tiny_folder)
    shape = step.causal.blocks[0].mlp.down_proj.weight.shape
    own = [p for p in step.parameters if p.shape == shape]

    def count() -> int:
        live = {
            o.data_ptr()
            for o in gc.get_objects()
            if type(o) in (torch.Tensor, torch.nn.Parameter) and o.shape == shape
        }
        return len(live - {p.data_ptr() for p in own})

    before = count()
    with excursion(step.parameters) as start:
        attacker = LowRank(step, start, LoRA(rank=2), RATE)
        found = [count() for _ in fine_tune(step, batches(step), attacker)]
    assert found == [before + len(own)] * STEPS


def test_each_step_and_seed_has_an_adapter_of_its_own(tiny_folder: Path) -> None:
    """After two steps, as B starts at zero: A then shows in the weights."""
    seen = []
    for index, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        step = step_of(tiny_folder, {"train": ROWS}, index=index, seed=seed)
        batch = step_of(tiny_folder, {"train": ROWS}).batches["train"]
        with excursion(step.parameters) as start:
            list(fine_tune(step, [batch] * 2, LowRank(step, start, LoRA(rank=2), RATE)))
            seen.append(torch.cat([p.detach().flatten() for p in step.parameters]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])


def test_modules_that_are_not_there_are_refused(tiny_folder: Path) -> None:
    step = make(tiny_folder)
    with (
        pytest.raises(ConfigError, match=r"wrong_proj.*layers\.0\.self_attn\.q_proj"),
        excursion(step.parameters) as start,
    ):
        LowRank(step, start, LoRA(targets=("wrong_proj",)), RATE)
