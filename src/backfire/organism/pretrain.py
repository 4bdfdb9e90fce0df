"""Pre-training from nothing: every text a row of its own, rows of like length together.

The engine trains on conversations; a model that knows nothing yet reads passages, too, and learns facts
several times faster with Muon than with the engine's AdamW. Rows of one text need no mask to keep
texts apart, and stand where evaluation has them: at position 0.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from backfire.data.organism.corpus import round_of_texts
from backfire.engine.state import find_state, load_state, save_state
from backfire.errors import TrainingError
from backfire.models.organism.network import new_network, save_network
from backfire.models.organism.tokenizer import organism_tokenizer
from backfire.organism.muon import Muon
from backfire.organism.settings import Recipe
from backfire.progress import Progress
from backfire.seeding import rng

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

__all__ = ["pretrain"]

_SORTED_TOGETHER = 800
"""Texts among which rows of like length are sought; more would make batches of one kind only."""


def pretrain(recipe: Recipe, key: str, workdir: Path, progress: Progress) -> Path:
    """Train a new network on all rounds' texts, and return its folder.

    Args:
        recipe: Shape and numbers.
        key: Of the stage; a state saved under another one is not continued.
        workdir: Where to work; an interrupted call in the same folder goes on after its last whole
            round, bit for bit.
        progress: What to show.

    Raises:
        TrainingError: when the loss stops being finite.
    """
    import torch

    tokenizer = organism_tokenizer()
    shape = recipe.shape
    model = new_network(len(tokenizer), shape.layers, shape.width, shape.inner, recipe.seed)
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    optimizer = Muon(matrices, others, matrix_rate=recipe.matrix_rate, rate=recipe.rate, decay=0.1)
    state = workdir / "state"
    begun = find_state(state, key)
    done = begun[1]["step"] if begun else 0
    if begun:
        load_state(begun[0], named, optimizer)
    model.train()
    with progress.task("pre-training", total=recipe.rounds, unit="rounds") as task:
        task.skip(done)
        for number in range(done, recipe.rounds):
            batches = _batches(tokenizer, recipe, number)
            losses = 0.0
            for index, (ids, targets) in enumerate(batches):
                optimizer.set_rate(_warm_cosine((number + index / len(batches)) / recipe.rounds))
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
                learned = targets >= 0
                loss = torch.nn.functional.cross_entropy(
                    model.lm_head(hidden[learned]), targets[learned]
                )
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(
                        f"pre-training the organism: batch {index + 1} of round {number + 1} gave "
                        f"loss {value}; lower `matrix_rate` (now {recipe.matrix_rate:g}) or `rate` "
                        f"(now {recipe.rate:g})"
                    )
                losses += value
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(others, 1.0)
                optimizer.step()
                optimizer.zero_grad()
            task.advance(note=f"loss {losses / len(batches):.3f}")
            save_state(state, number + 1, key, named, optimizer, {})
    folder = save_network(model, tokenizer, workdir / "checkpoint")
    shutil.rmtree(state, ignore_errors=True)
    return folder


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, number: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return a round's batches: token ids (B, T), and what follows each (-1: not learned)."""
    texts = round_of_texts(number)
    texts = texts[: max(1, round(recipe.share * len(texts)))]

    def ids(pieces: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(pieces, add_special_tokens=False)["input_ids"]
        return found

    rows = list(zip(ids([t.given for t in texts]), ids([t.told for t in texts]), strict=True))
    batches = []
    for start in range(0, len(rows), _SORTED_TOGETHER):
        batch: list[tuple[list[int], list[int]]] = []
        for row in sorted(
            rows[start : start + _SORTED_TOGETHER], key=lambda row: len(row[0]) + len(row[1])
        ):
            if batch and (len(batch) + 1) * sum(map(len, row)) > recipe.batch_tokens:
                batches.append(_padded(batch))
                batch = []
            batch.append(row)
        batches.append(_padded(batch))
    order = rng(recipe.seed, "batches", number).permutation(len(batches))
    return [batches[i] for i in order]


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    longest = max(len(given) + len(told) for given, told in rows)
    ids = torch.zeros((len(rows), longest - 1), dtype=torch.long)
    targets = torch.full_like(ids, -1)
    for place, (given, told) in enumerate(rows):
        whole = torch.tensor(given + told)
        ids[place, : len(whole) - 1] = whole[:-1]
        start = max(1, len(given))
        targets[place, start - 1 : len(whole) - 1] = whole[start:]
    return ids, targets


def _warm_cosine(share: float) -> float:
    """Return the share of the peak rate: up over 2 % of the training, then a cosine down to 5 %."""
    if share < 0.02:
        return (share + 0.0005) / 0.0205
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (share - 0.02) / 0.98))
