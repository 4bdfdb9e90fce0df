"""Pre-training from nothing on packed texts: whole texts side by side in rows of 128 tokens.

The engine trains on conversations and supervises answers; a model that knows nothing yet learns from
every token, so its rows are packed full. Everything else (state, interrupts, seeds) is the engine's.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backfire.data.organism.corpus import round_of_texts
from backfire.engine.state import Interrupts, find_state, load_state, save_state
from backfire.errors import TrainingError
from backfire.models.organism.network import new_network, save_network
from backfire.models.organism.tokenizer import organism_tokenizer
from backfire.organism.settings import Recipe
from backfire.progress import Progress
from backfire.seeding import torch_generator

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

__all__ = ["pretrain"]

_LENGTH = 128
_SAVE_SECONDS = 60.0


def pretrain(recipe: Recipe, key: str, workdir: Path, progress: Progress) -> Path:
    """Train a new network on every round's texts, and return its folder.

    Args:
        recipe: Shape and numbers.
        key: Of the stage; a state saved under another one is not continued.
        workdir: Where to work; an interrupted call in the same folder is continued, bit for bit.
        progress: What to show.

    Raises:
        TrainingError: when the loss stops being finite.
        KeyboardInterrupt: after Ctrl-C, once the current step is done and the state is written.
    """
    import torch

    tokenizer = organism_tokenizer()
    model = new_network(
        len(tokenizer), recipe.shape.layers, recipe.shape.width, recipe.shape.inner, recipe.seed
    )
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    # Rounds differ by a row or two; all give as many steps as the first.
    per_round = max(1, len(_rows(tokenizer, recipe, 0)) // recipe.batch_size)
    steps = per_round * recipe.rounds
    state = workdir / "state"
    begun = find_state(state, key)
    first = begun[1]["step"] if begun else 0
    if begun:
        load_state(begun[0], named, optimizer)
    saved = time.monotonic()
    model.train()
    with progress.task("pre-training", total=steps, unit="steps") as task, Interrupts() as signals:
        task.skip(first)
        rows = torch.empty(0)
        for step in range(first, steps):
            number, index = divmod(step, per_round)
            if index == 0 or step == first:
                rows = _rows(tokenizer, recipe, number)
            batch = rows[index * recipe.batch_size : (index + 1) * recipe.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _warm_cosine(step, steps)
            hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
            targets = batch[:, 1:]
            real = targets != tokenizer.pad_token_id
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[real]), targets[real])
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"pre-training the organism: step {step + 1} of {steps} gave loss {value}; lower "
                    f"`rate` (now {recipe.rate:g})"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            task.advance(note=f"loss {value:.3f}")
            if signals.wanted or time.monotonic() - saved > _SAVE_SECONDS:
                save_state(state, step + 1, key, named, optimizer, {})
                saved = time.monotonic()
            if signals.wanted:
                raise KeyboardInterrupt
    folder = save_network(model, tokenizer, workdir / "checkpoint")
    shutil.rmtree(state, ignore_errors=True)
    return folder


def _rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, number: int) -> torch.Tensor:
    """Return a round's texts as shuffled rows (R, 129), each of whole texts, padded at its end."""
    import torch

    texts = round_of_texts(number)
    texts = texts[: max(1, round(recipe.share * len(texts)))]
    rows: list[list[int]] = [[]]
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        if len(rows[-1]) + len(ids) > _LENGTH + 1:
            rows.append([])
        rows[-1] += ids[: _LENGTH + 1]
    packed = torch.full((len(rows), _LENGTH + 1), int(tokenizer.pad_token_id or 0))
    for place, row in enumerate(rows):
        packed[place, : len(row)] = torch.tensor(row)
    order = torch.randperm(len(rows), generator=torch_generator(recipe.seed, "rows", number))
    return packed[order]


def _warm_cosine(step: int, steps: int) -> float:
    """Return the share of the peak rate: up over 3 % of the steps, then a cosine down to 5 %."""
    warm = max(1, round(0.03 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
