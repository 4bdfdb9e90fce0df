"""Many token sequences to few rows, so that no shared prefix is computed twice.

Sequences that begin alike are laid into one row as a tree: each token stands once, knows its depth
(its position id) and attends only to its own ancestors. One pass over a row therefore gives what one
pass over each sequence would, without padding. Where many sequences share a long beginning (a few-shot
prompt), that trunk is computed once, kept in the KV cache, and all rows of the group stand on it.

>>> three = [np.array([5, 6, 7]), np.array([5, 6, 8]), np.array([9])]
>>> [(len(group.trunk), group.rows) for group in plan(three, [2, 2, 0], row_tokens=8)]
[(0, [[0, 1, 2]])]
>>> row = flatten(three)
>>> row.tokens.tolist(), row.positions.tolist()
([5, 6, 7, 8, 9], [0, 1, 2, 2, 0])
>>> [path.tolist() for path in row.paths]
[[0, 1, 2], [0, 1, 3], [4]]

Legend: T nodes (tokens) of a row, P tokens of the trunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Group", "Row", "Tokens", "common", "flatten", "plan"]

_SHORTEST_TRUNK = 48
"""Tokens from which a shared beginning is worth a pass of its own."""

Tokens = npt.NDArray[np.int64]
"""Token ids, or indices."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows on one trunk."""

    trunk: Tokens
    """Token ids all sequences of the group begin with; empty where there is no trunk."""
    rows: list[list[int]]
    """Indices of the sequences of each row, in an order in which neighbors share the most."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tree of sequences, ready for one pass."""

    tokens: Tokens
    """Token ids (T,)."""
    positions: Tokens
    """Depth of each node (T,), the trunk's length included."""
    attends: npt.NDArray[np.bool_]
    """Whether a node (row) attends to a trunk token or node (column): (T, P + T)."""
    paths: list[Tokens]
    """For each sequence, the nodes of its tokens behind the trunk, in order."""


def plan(sequences: Sequence[Tokens], first_read: Sequence[int], row_tokens: int) -> list[Group]:
    """Return groups that cover every sequence once.

    Args:
        sequences: Different, non-empty arrays of token ids.
        first_read: For each, the index of the first token whose output is needed; a trunk ends
            before it.
        row_tokens: Nodes a row should hold; it may grow to twice as many rather than split
            sequences that share most of their tokens.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u8").tobytes())
    shared = [0] + [common(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]

    groups: list[Group] = []
    loose: list[
        tuple[int, int]
    ] = []  # sequences of no trunk, each with what it shares with the last
    start = 0
    while start < len(order):
        trunk = min(int(first_read[order[start]]), len(sequences[order[start]]))
        end = start + 1
        while end < len(order):
            candidate = min(trunk, shared[end], int(first_read[order[end]]))
            if candidate < _SHORTEST_TRUNK:
                break
            trunk, end = candidate, end + 1
        run = list(zip(order[start:end], [0, *shared[start + 1 : end]], strict=True))
        nodes = sum(len(sequences[i]) - s for i, s in run)
        if nodes - trunk > row_tokens and end - start > 1:
            rows = _rows([(i, max(s, trunk)) for i, s in run], sequences, trunk, row_tokens)
            groups.append(Group(sequences[order[start]][:trunk], rows))
        else:
            loose += [(order[start], shared[start]), *run[1:]]
        start = end
    if loose:
        groups.append(Group(np.empty(0, np.int64), _rows(loose, sequences, 0, row_tokens)))
    return groups


def flatten(sequences: Sequence[Tokens], trunk: int = 0) -> Row:
    """Return the tree of sequences that are in the order of `plan`.

    Args:
        sequences: Whole sequences, the trunk's tokens included.
        trunk: Number of leading tokens they share that are computed elsewhere.
    """
    shared = [trunk] + [max(trunk, common(a, b)) for a, b in itertools.pairwise(sequences)]
    size = sum(len(array) - s for array, s in zip(sequences, shared, strict=True))
    tokens, positions = np.empty(size, np.int64), np.empty(size, np.int64)
    attends = np.zeros((size, trunk + size), dtype=np.bool_)
    attends[:, :trunk] = True
    path = np.empty(0, np.int64)
    paths = []
    start = 0
    for array, kept in zip(sequences, shared, strict=True):
        end = start + len(array) - kept
        tokens[start:end] = array[kept:]
        positions[start:end] = np.arange(kept, len(array))
        ancestors = path[: kept - trunk]
        attends[start:end, trunk + ancestors] = True
        attends[start:end, trunk + start : trunk + end] = np.tri(end - start, dtype=np.bool_)
        path = np.concatenate([ancestors, np.arange(start, end)])
        paths.append(path)
        start = end
    return Row(tokens, positions, attends, paths)


def _rows(
    run: Sequence[tuple[int, int]], sequences: Sequence[Tokens], trunk: int, row_tokens: int
) -> list[list[int]]:
    """Fill rows in order; where the budget is met, break between sequences that share little."""
    rows: list[list[int]] = []
    size = 0
    for index, shared in run:
        length = len(sequences[index]) - trunk
        new = len(sequences[index]) - shared
        alike = 2 * (shared - trunk) > length
        if not rows or size + new > (2 * row_tokens if alike else row_tokens):
            rows.append([])
            size, new = 0, length
        rows[-1].append(index)
        size += new
    return rows


def common(first: Tokens, second: Tokens) -> int:
    """Return how many leading tokens two sequences share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if different.size else length
