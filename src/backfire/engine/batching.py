"""Rows to global batches to micro-batches.

A global batch is drawn as the method says; it is then cut by length under a token budget. The loss is
normalised by the supervised tokens of the *global* batch, so the gradient is that of one big padded
batch, without the padding. Batch `t` is a pure function of seed and `t`: resuming needs no sampler
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from backfire.data.chat import Chat, Encoded
from backfire.errors import DataError
from backfire.records import Example
from backfire.seeding import rng

if TYPE_CHECKING:
    import torch

__all__ = ["GlobalBatch", "MicroBatch", "Stream", "as_text", "difference"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that go through the model together, padded on the right.

    Padding on the right of a causal model is never attended to by a real token, so no mask is needed.
    """

    ids: torch.Tensor
    """Token ids (B, T)."""
    positions: torch.Tensor
    """Indices (N,) into the flattened (B * T) of the positions that predict a supervised token."""
    targets: torch.Tensor
    """The supervised tokens (N,)."""
    lengths: tuple[int, ...]
    """Real tokens of each row; 0 in a batch that only keeps processes in step."""

    @property
    def num_tokens(self) -> int:
        """Return the number of real tokens."""
        return sum(self.lengths)

    @property
    def real(self) -> torch.Tensor:
        """Return where a real token stands (B, T)."""
        import torch

        lengths = torch.tensor(self.lengths, device=self.ids.device)
        return torch.arange(self.ids.shape[1], device=self.ids.device) < lengths[:, None]

    def row_sums(self, per_token: torch.Tensor) -> torch.Tensor:
        """Return the sums (B,) over each row's supervised tokens of a value a token (N,)."""
        rows = self.positions // self.ids.shape[1]
        return per_token.new_zeros(len(self.ids)).index_add(0, rows, per_token)

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on a device."""
        return MicroBatch(
            self.ids.to(device), self.positions.to(device), self.targets.to(device), self.lengths
        )


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step of one stream."""

    rows: tuple[Encoded, ...]
    together: int = 1
    """So many rows in turn never part: 2 for pairs of answers whose losses depend on each other."""

    @cached_property
    def supervised(self) -> int:
        """Return the number of supervised tokens over all devices."""
        return sum(len(row.supervised) for row in self.rows)

    @cached_property
    def tokens(self) -> int:
        """Return the number of real tokens over all devices."""
        return sum(len(row.ids) for row in self.rows)

    def micro(self, token_budget: int, rank: int = 0, world: int = 1) -> list[MicroBatch]:
        """Return this process's micro-batches; every process gets the same number of them.

        A process with fewer repeats its last one with no supervised position, which costs a pass and
        adds nothing, so that gradient synchronisation stays in step.
        """
        units = [self.rows[i : i + self.together] for i in range(0, len(self.rows), self.together)]
        plans = [_cut(units[r::world], token_budget) for r in range(world)]
        longest = max(len(plan) for plan in plans)
        mine = [_collate(rows) for rows in plans[rank]]
        while len(mine) < longest:
            last = mine[-1] if mine else _collate(units[0])
            nothing = (0,) * len(last.lengths)
            mine.append(MicroBatch(last.ids, last.positions[:0], last.targets[:0], nothing))
        return mine


def difference(batch: GlobalBatch, other: GlobalBatch) -> GlobalBatch:
    """Return a batch that supervises only the tokens its answers do not share with another's.

    A token counts as shared where the other row has the same one in the same place; what goes on after
    the other row's end is not shared. Prompts are never supervised.

    Args:
        batch: Rows.
        other: As many rows, each with another answer to the same prompt.
    """
    return GlobalBatch(
        tuple(
            replace(
                row,
                kept=tuple(i for i in row.supervised if row.ids[i : i + 1] != rival.ids[i : i + 1]),
            )
            for row, rival in zip(batch.rows, other.rows, strict=True)
        )
    )


def as_text(batch: GlobalBatch) -> GlobalBatch:
    """Return a batch that supervises every token that has one before it, prompts included."""
    return GlobalBatch(tuple(replace(row, start=1, kept=None) for row in batch.rows))


class Stream:
    """Encoded rows and the order in which steps take them."""

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        chat: Chat,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        order: str = "",
    ) -> None:
        """Encode the rows.

        Args:
            name: Of the stream.
            examples: Its rows.
            chat: How they are encoded.
            max_length: Of a row, in tokens.
            batch_size: Rows of a global batch.
            seed: Of the order.
            shuffle: Draw a new order each epoch.
            drop_last: Drop an epoch's last incomplete batch.
            order: Streams of equal length with the same one give rows that belong together to the
                same step, in the same places. Empty: the stream's own.

        Raises:
            DataError: when there are none, or one cannot be encoded.
        """
        if not examples:
            raise DataError(
                f"preparing the training rows {name!r}: there are none; check the counts under `data`"
            )
        self.name, self.chat = name, chat
        self.rows = [chat.encode(example, max_length) for example in examples]
        self.truncated = sum(row.truncated for row in self.rows)
        self._batch = batch_size
        self._seed = seed
        self._name_of_order = order or name
        self._shuffle = shuffle
        full, rest = divmod(len(self.rows), batch_size)
        self.steps_per_epoch = full if full and (drop_last or not rest) else full + 1
        self._epoch: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> GlobalBatch:
        """Return the rows of a step (from 0)."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[index * self._batch : (index + 1) * self._batch]
        return GlobalBatch(tuple(self.rows[i] for i in order))

    def _order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return list(range(len(self.rows)))
        if self._epoch[0] != epoch:
            order = rng(self._seed, "shuffle", self._name_of_order, epoch).permutation(
                len(self.rows)
            )
            self._epoch = (epoch, order.tolist())
        return self._epoch[1]


_PASS_TOKENS = 128
"""What one more pass costs beside its tokens, in tokens: gradients of all weights are added up again.
Measured on two CPU cores; only speed depends on it."""


def _cut(units: Sequence[Sequence[Encoded]], token_budget: int) -> list[list[Encoded]]:
    """Sort by length and cut where padding and passes together cost least, within the budget.

    A single unit larger than the budget goes alone.
    """
    sized = sorted(
        ((max(len(row.ids) for row in unit), unit) for unit in units),
        key=lambda item: item[0],
        reverse=True,
    )
    # least[i]: cost of the units from i on; end[i]: where the micro-batch that starts at i ends.
    least = [0] * (len(sized) + 1)
    end = [0] * len(sized)
    for i in reversed(range(len(sized))):
        width, unit = sized[i]
        size = width * len(unit)
        last = min(len(sized), i + max(1, token_budget // size))
        costs = {j: size * (j - i) + _PASS_TOKENS + least[j] for j in range(i + 1, last + 1)}
        end[i] = min(costs, key=lambda j: (costs[j], -j))
        least[i] = costs[end[i]]
    batches: list[list[Encoded]] = []
    start = 0
    while start < len(sized):
        batches.append([row for _, unit in sized[start : end[start]] for row in unit])
        start = end[start]
    return batches


def _collate(rows: Sequence[Encoded]) -> MicroBatch:
    import torch

    width = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    positions: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for index, row in enumerate(rows):
        sequence = torch.tensor(row.ids)
        ids[index, : len(row.ids)] = sequence
        supervised = torch.tensor(row.supervised, dtype=torch.long)
        positions.append(supervised - 1 + index * width)
        targets.append(sequence[supervised])
    lengths = tuple(len(row.ids) for row in rows)
    return MicroBatch(ids, torch.cat(positions), torch.cat(targets), lengths)
