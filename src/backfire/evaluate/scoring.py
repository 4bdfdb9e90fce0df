"""Log-likelihoods of continuations, without computing what several of them share more than once.

>>> scorer = Scorer(loaded.model, max_length=2048)                        # doctest: +SKIP
>>> stem = np.array([5, 6])
>>> two = [Request(stem, np.array([7])), Request(stem, np.array([8, 9]))]
>>> scorer(two, "piqa")                                                   # doctest: +SKIP
[Likelihood(logprob=-2.1, greedy=True), Likelihood(logprob=-7.9, greedy=False)]

The shared path lays many sequences into one row (`backfire.evaluate.packing`) and hands the model its
own attention mask and position ids. Whether a model honors both is not looked up in a list of
architectures: a handful of the real requests are scored in full as well, and where the two disagree
(state-space and linear-attention layers, position biases inside the attention, kernels that take no
mask) every sequence is scored in full. Sequences longer than an attention window always are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from backfire.errors import DataError, DivergedError
from backfire.evaluate.packing import Row, Tokens, flatten, plan
from backfire.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Likelihood", "Request", "Scorer"]

_PROBE_TOKENS = 24
"""Tokens of context, and of continuation, that are scored both ways before sharing is trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A continuation to score after a context, as arrays of token ids; neither is empty."""

    context: Tokens
    continuation: Tokens


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What the model thinks of one continuation."""

    logprob: float
    """Summed log-probability of its tokens, in nats."""
    greedy: bool
    """Whether each of its tokens is the model's first choice."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Where a request's tokens are read: the last outputs of a sequence."""

    request: int
    sequence: int
    targets: Tokens


class Scorer:
    """One model, ready to score requests."""

    def __init__(
        self,
        model: PreTrainedModel,
        max_length: int,
        *,
        pass_tokens: int | None = None,
        shared: bool | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take a model in evaluation mode.

        Args:
            model: Any causal LM of transformers.
            max_length: Longest input in tokens; longer ones lose their beginning.
            pass_tokens: Tokens of one forward pass; None is 512 on a CPU, 2048 elsewhere.
            shared: Whether to share prefixes; None lets a probe decide.
            progress: Where to say that a slower path was taken.
        """
        self.model = model
        self.shared = shared
        """Whether prefixes are shared; None until the first call has found out."""
        self._max_length = max_length
        self._pass_tokens = pass_tokens or (512 if model.device.type == "cpu" else 2048)
        self._progress = progress or Silent()
        accepted = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in accepted
        # Renamed in transformers 5.2x; the old name still works there but warns.
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"
        self._window = _attention_window(model.config)

    def __call__(self, requests: Sequence[Request], label: str) -> list[Likelihood]:
        """Return one likelihood per request, in order.

        Args:
            requests: What to score.
            label: What to call this work in front of the user.

        Raises:
            DataError: when a request is empty, or its continuation longer than the context window.
            DivergedError: when the model gives NaN.
        """
        sequences, reads = self._sequences(requests)
        short = [read for read in reads if len(sequences[read.sequence]) <= self._window]
        long = [read for read in reads if len(sequences[read.sequence]) > self._window]
        if self.shared is None and short:
            self.shared = self._probe([requests[read.request] for read in short])
        if not self.shared:
            short, long = [], list(reads)
        if short and long:
            self._progress.say(
                f"{label}: {len(long)} of {len(reads)} options are longer than this model's attention "
                f"window of {self._window} tokens and are scored one by one, which is slower"
            )
        found: dict[int, Likelihood] = {}
        with self._progress.task(label, total=len(reads), unit="options") as task:
            for part, path in ((short, self._packed), (long, self._plain)):
                for read, likelihood in path(sequences, part):
                    found[read.request] = likelihood
                    task.advance()
        return [found[index] for index in range(len(requests))]

    def _sequences(self, requests: Sequence[Request]) -> tuple[list[Tokens], list[_Read]]:
        """Return the different model inputs, and where each request is read."""
        index: dict[bytes, int] = {}
        sequences: list[Tokens] = []
        reads = []
        for number, request in enumerate(requests):
            if not len(request.context) or not len(request.continuation):
                raise DataError(
                    f"scoring option {number + 1} of {len(requests)}: its "
                    f"{'text' if len(request.context) else 'context'} has no token of its own under "
                    "this tokenizer; drop the question"
                )
            if len(request.continuation) > self._max_length:
                raise DataError(
                    f"scoring option {number + 1} of {len(requests)}: it has "
                    f"{len(request.continuation)} tokens, the model takes {self._max_length}; "
                    "drop the question or use a model with a longer context"
                )
            # The last token is only predicted, never read by the model.
            joined = np.concatenate([request.context, request.continuation])
            whole = joined[-(self._max_length + 1) : -1]
            sequence = index.setdefault(whole.tobytes(), len(sequences))
            if sequence == len(sequences):
                sequences.append(whole)
            reads.append(_Read(number, sequence, request.continuation))
        return sequences, reads

    # ------------------------------------------------------------------------------------ shared path

    def _packed(
        self, sequences: Sequence[Tokens], reads: Sequence[_Read]
    ) -> Iterator[tuple[_Read, Likelihood]]:
        """Score with every shared prefix computed once."""
        by_sequence: dict[int, list[_Read]] = {}
        for read in reads:
            by_sequence.setdefault(read.sequence, []).append(read)
        used = list(by_sequence)
        first_read = [
            min(len(sequences[i]) - len(read.targets) for read in by_sequence[i]) for i in used
        ]
        for group in plan([sequences[i] for i in used], first_read, self._pass_tokens):
            cache = self._cached(group.trunk) if len(group.trunk) else None
            for members in group.rows:
                row = flatten([sequences[used[m]] for m in members], len(group.trunk))
                row_reads = [
                    (read, torch.from_numpy(path[len(path) - len(read.targets) :]))
                    for member, path in zip(members, row.paths, strict=True)
                    for read in by_sequence[used[member]]
                ]
                yield from self._row(row, row_reads, cache)

    def _row(
        self, row: Row, reads: Sequence[tuple[_Read, torch.Tensor]], cache: Any
    ) -> Iterator[tuple[_Read, Likelihood]]:
        device, dtype = self.model.device, self.model.dtype
        lowest = torch.finfo(dtype).min
        blocked = torch.from_numpy(~row.attends).to(device)
        mask = torch.zeros(blocked.shape, dtype=dtype, device=device).masked_fill_(blocked, lowest)
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(row.tokens).to(device)[None],
            "position_ids": torch.from_numpy(row.positions).to(device)[None],
            "attention_mask": mask[None, None],
        }
        keep, where = torch.unique(torch.cat([nodes for _, nodes in reads]), return_inverse=True)
        if cache is not None:
            inputs |= {self._cache_name: cache, "use_cache": True}
        logits = self._logits(inputs, keep)[0]
        if cache is not None:
            cache.crop(-len(row.tokens))  # the next row stands on the bare trunk again
        targets = torch.from_numpy(np.concatenate([read.targets for read, _ in reads]))
        yield from _likelihoods([read for read, _ in reads], logits, where, targets)

    def _cached(self, trunk: Tokens) -> Any:
        """Return the KV cache of the tokens a group of rows begins with."""
        from transformers import DynamicCache

        # Without the model's configuration the cache keeps every token, window or not: no sequence on
        # this path is longer than the window.
        cache = DynamicCache()
        inputs = {"input_ids": torch.from_numpy(trunk).to(self.model.device)[None]}
        self._logits(inputs | {self._cache_name: cache, "use_cache": True}, torch.tensor([0]))
        return cache

    def _probe(self, requests: Sequence[Request]) -> bool:
        """Return whether the shared path gives what full sequences give, on a few real requests."""
        # Two options of the first question and two of the last, cut short: branches, fresh starts, and
        # little work where the contexts are long.
        width = max(1, min(_PROBE_TOKENS, self._window // 2))
        sample = [
            Request(one.context[-width:], one.continuation[:width])
            for one in (*requests[:2], *requests[-2:])
        ]
        sequences, reads = self._sequences(sample)
        plain = {read: value.logprob for read, value in self._plain(sequences, reads)}
        try:
            worst = max(
                abs(value.logprob - plain[read]) / (1 + abs(plain[read]))
                for read, value in self._both_ways(sequences, reads)
            )
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = f"it does not take a mask and positions of ours ({type(error).__name__})"
        else:
            tolerance = 1e-4 if self.model.dtype == torch.float32 else 3e-2
            if worst <= tolerance:
                return True
            reason = f"the two ways differ by a factor of {worst:.2g} of the log-likelihood"
        self._progress.say(
            "this model cannot share the beginning of its options exactly: "
            f"{reason}; each option is scored in full, which is slower"
        )
        return False

    def _both_ways(
        self, sequences: list[Tokens], reads: Sequence[_Read]
    ) -> Iterator[tuple[_Read, Likelihood]]:
        """Score all in rows, then one on a trunk of half its context."""
        yield from self._packed(sequences, reads)
        read = reads[0]
        sequence, count = sequences[read.sequence], len(read.targets)
        trunk = (len(sequence) - count) // 2
        if trunk:
            row = flatten([sequence], trunk)
            nodes = torch.from_numpy(row.paths[0][-count:])
            yield from self._row(row, [(read, nodes)], self._cached(sequence[:trunk]))

    # -------------------------------------------------------------------------------------- plain path

    def _plain(
        self, sequences: Sequence[Tokens], reads: Sequence[_Read]
    ) -> Iterator[tuple[_Read, Likelihood]]:
        """Score each sequence in full, padded on the right, where a causal model never looks."""
        by_sequence: dict[int, list[_Read]] = {}
        for read in reads:
            by_sequence.setdefault(read.sequence, []).append(read)
        for batch in _batches(by_sequence, sequences, self._pass_tokens):
            width = max(len(sequences[i]) for i in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            rows: list[int] = []
            columns: list[int] = []
            batch_reads: list[_Read] = []
            for row, index in enumerate(batch):
                ids[row, : len(sequences[index])] = torch.from_numpy(sequences[index])
                for read in by_sequence[index]:
                    length, count = len(sequences[index]), len(read.targets)
                    rows += [row] * count
                    columns += range(length - count, length)
                    batch_reads.append(read)
            keep, where = torch.unique(torch.tensor(columns), return_inverse=True)
            logits = self._logits({"input_ids": ids.to(self.model.device)}, keep)
            flat = torch.tensor(rows) * len(keep) + where
            targets = torch.from_numpy(np.concatenate([read.targets for read in batch_reads]))
            yield from _likelihoods(batch_reads, logits.flatten(0, 1), flat, targets)

    @torch.inference_mode()
    def _logits(self, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, len(keep), V) at the positions `keep` only."""
        keep = keep.to(self.model.device)
        inputs = {"use_cache": False, **inputs}
        if self._keeps_logits:
            inputs["logits_to_keep"] = keep
        logits: torch.Tensor = self.model(**inputs).logits
        return logits if self._keeps_logits else logits[:, keep]


@torch.inference_mode()
def _likelihoods(
    reads: Sequence[_Read], logits: torch.Tensor, where: torch.Tensor, targets: torch.Tensor
) -> Iterator[tuple[_Read, Likelihood]]:
    """Sum each read's tokens.

    Args:
        reads: In the order of their tokens.
        logits: (N, V).
        where: For each token (M,), the row of `logits` that predicts it.
        targets: The tokens (M,).
    """
    where, targets = where.to(logits.device), targets.to(logits.device)
    # The fused kernel is the harness's, too: torch's logsumexp is closer to fp64 (3e-5 against 2e-4 on an
    # option of SmolLM2), but then the numbers would not be the field's. Half-precision logits are
    # normalized in fp32; the harness rounds them once more.
    every = torch.log_softmax(logits.float(), -1)
    first = every.argmax(-1)
    logprobs = every[where, targets].cpu().double()
    if torch.isnan(logprobs).any():
        raise DivergedError(
            "scoring options: the model gives NaN, so no choice of its can be read; its weights are "
            "damaged, or its training diverged. Check the training effect of this model"
        )
    greedy = (first[where] == targets).cpu()
    end = 0
    for read in reads:
        start, end = end, end + len(read.targets)
        yield read, Likelihood(float(logprobs[start:end].sum()), bool(greedy[start:end].all()))


def _batches(used: Iterable[int], sequences: Sequence[Tokens], budget: int) -> Iterator[list[int]]:
    """Yield indices by falling length, filled up to a budget of padded tokens."""
    batch: list[int] = []
    for index in sorted(used, key=lambda i: len(sequences[i]), reverse=True):
        if batch and len(sequences[batch[0]]) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _attention_window(config: Any) -> int:
    """Return the shortest window of the model's attention layers (a large number when unlimited)."""
    config = getattr(config, "text_config", None) or config
    names = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    widths = [getattr(config, name, None) for name in names]
    return min((w for w in widths if isinstance(w, int) and w > 0), default=1 << 30)
