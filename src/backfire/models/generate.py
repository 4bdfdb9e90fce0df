"""Answers of a model to prompts, batched, in the order asked.

The loop is ours because it drops each row from the batch, and from the key-value cache, as soon as
its answer ends: a model that refuses in ten tokens costs ten tokens. The answers do not depend on
the batching (up to the rounding of the model's own precision).

>>> generate(loaded, examples, max_new_tokens=48)[0].text  # doctest: +SKIP
'Warm the pan first.'
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfire.errors import ConfigError, DataError, DivergedError
from backfire.models.load import context_length
from backfire.progress import Progress, Silent, Task
from backfire.records import Example
from backfire.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from backfire.models.load import Loaded

__all__ = ["Generation", "generate"]


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer."""

    text: str
    """Decoded without special tokens."""
    num_tokens: int
    """Generated tokens, the end token not counted."""
    finished: bool
    """True when the model stopped by itself, False when it was cut at the limit."""


@dataclass
class _Row:
    index: int
    prompt: list[int]
    sampler: torch.Generator | None
    answer: list[int]
    finished: bool = False


def generate(
    loaded: Loaded,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    token_budget: int = 8192,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
    label: str = "answers",
) -> list[Generation]:
    """Return the model's answer to each example's prompt, in order.

    Args:
        loaded: Model, tokenizer and chat format.
        examples: Only `prompt`, `system` and `id` are used.
        max_new_tokens: Longest answer, positive.
        token_budget: Most tokens in the key-value cache of one batch: rows times the longest prompt
            plus `max_new_tokens`. A single row may exceed it.
        temperature: 0 is greedy; else each token is drawn from softmax(logits / temperature).
        seed: Of the draws; each row draws from a stream of its own, named by its content.
        progress: Where to report; one unit an answer.
        label: The task's name in front of the user.

    Raises:
        DataError: when a prompt and its answer do not fit in the model's context.
        DivergedError: when the model's logits are not numbers.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"generating answers: max_new_tokens must be at least 1 and temperature at least 0; "
            f"got {max_new_tokens} and {temperature}"
        )
    rows = [
        _Row(
            index,
            loaded.chat.prompt_ids(example.prompt, example.system),
            torch_generator(seed, "generation", example.id) if temperature else None,
            [],
        )
        for index, example in enumerate(examples)
    ]
    _check_fit(loaded, examples, rows, max_new_tokens)
    with (progress or Silent()).task(label, total=len(rows), unit="answers") as task:
        for batch in _batches(rows, max_new_tokens, token_budget):
            _answer(loaded, batch, max_new_tokens, temperature, task)
    decode = loaded.tokenizer.decode
    return [
        Generation(decode(row.answer, skip_special_tokens=True), len(row.answer), row.finished)
        for row in rows
    ]


def _check_fit(
    loaded: Loaded, examples: Sequence[Example], rows: list[_Row], max_new_tokens: int
) -> None:
    context = context_length(loaded.model.config)
    for row in rows:
        if len(row.prompt) + max_new_tokens > context:
            raise DataError(
                f"generating answers: prompt {examples[row.index].id} has {len(row.prompt)} tokens "
                f"and leaves no room for {max_new_tokens} new ones in the model's context of "
                f"{context}; shorten or remove the prompt, or lower max_new_tokens"
            )


def _batches(rows: list[_Row], max_new_tokens: int, token_budget: int) -> Iterator[list[_Row]]:
    """Yield rows of like length together, longest first: memory runs out at once or never."""
    waiting = sorted(rows, key=lambda row: -len(row.prompt))
    while waiting:
        size = max(1, token_budget // (len(waiting[0].prompt) + max_new_tokens))
        yield waiting[:size]
        waiting = waiting[size:]


def _answer(
    loaded: Loaded, live: list[_Row], max_new_tokens: int, temperature: float, task: Task
) -> None:
    """Fill in the rows' answers."""
    import torch
    from transformers import DynamicCache

    model, stops = loaded.model, set(loaded.chat.stop_ids)
    parameters = inspect.signature(model.forward).parameters
    cache = DynamicCache(config=model.config)
    fixed = {
        "use_cache": True,
        # Renamed in transformers 5.2x; the old name still works there, with a warning.
        "cache" if "cache" in parameters else "past_key_values": cache,
        **({"logits_to_keep": 1} if "logits_to_keep" in parameters else {}),
    }
    width = max(len(row.prompt) for row in live)
    pad = loaded.tokenizer.pad_token_id or 0
    padded = [[pad] * (width - len(row.prompt)) + row.prompt for row in live]
    shown = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in live]
    tokens = torch.tensor(padded, device=model.device)
    mask = torch.tensor(shown, device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            output = model(input_ids=tokens, attention_mask=mask, position_ids=positions, **fixed)
            chosen = _choose(output.logits[:, -1].float(), live, temperature)
            for row, token in zip(live, chosen, strict=True):
                row.finished = token in stops
                if not row.finished:
                    row.answer.append(token)
            kept = [place for place, row in enumerate(live) if not row.finished]
            task.advance(len(live) - len(kept))
            if not kept:
                return
            if len(kept) < len(live):
                live = [live[place] for place in kept]
                select = torch.tensor(kept, device=model.device)
                cache.batch_select_indices(select)
                mask, positions = mask[select], positions[select]
            tokens = torch.tensor([[row.answer[-1]] for row in live], device=model.device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            positions = positions[:, -1:] + 1
    task.advance(len(live))


def _choose(logits: torch.Tensor, rows: list[_Row], temperature: float) -> list[int]:
    """Return the next token of each row, from logits (rows, vocabulary)."""
    if logits.isnan().any():
        raise DivergedError(
            "generating answers: the model's logits are not numbers (NaN), so its weights are "
            "broken; look at the loss of the training that made them"
        )
    if not temperature:
        greedy: list[int] = logits.argmax(dim=-1).tolist()
        return greedy
    chances = (logits / temperature).softmax(dim=-1).cpu()
    return [
        int(chance.multinomial(1, generator=row.sampler))
        for chance, row in zip(chances, rows, strict=True)
    ]
