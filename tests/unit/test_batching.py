"""Global and micro-batches: every row once, every supervised token once, however it is cut."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backfire.data.chat import Chat, ChatFormat, Encoded
from backfire.engine.batching import GlobalBatch, Stream
from backfire.errors import DataError
from backfire.models.tiny import byte_tokenizer
from backfire.records import Example

CHAT = Chat(byte_tokenizer(), ChatFormat())
ROW = st.tuples(st.integers(2, 20), st.integers(0, 19)).map(
    lambda t: Encoded(list(range(10, 10 + t[0])), min(t[1], t[0] - 1), False)
)


@given(
    rows=st.lists(ROW, min_size=1, max_size=12), budget=st.integers(8, 80), world=st.integers(1, 3)
)
def test_micro_batches_hold_each_supervised_token_once(
    rows: list[Encoded], budget: int, world: int
) -> None:
    batch = GlobalBatch(tuple(rows))
    counts = []
    seen: Counter[tuple[int, int]] = Counter()
    for rank in range(world):
        parts = batch.micro(budget, rank, world)
        counts.append(len(parts))
        for part in parts:
            assert part.ids.numel() <= max(budget, part.ids.shape[1])
            flat = part.ids.flatten()
            for position, target in zip(
                part.positions.tolist(), part.targets.tolist(), strict=True
            ):
                assert flat[position + 1] == target  # the next token in the same row
                seen[(int(flat[position]), target)] += 1
    wanted: Counter[tuple[int, int]] = Counter()
    for row in rows:
        for i in range(max(row.start, 1), len(row.ids)):
            wanted[(row.ids[i - 1], row.ids[i])] += 1
    assert seen == wanted
    assert len(set(counts)) == 1  # processes stay in step


@given(
    rows=st.lists(ROW, min_size=1, max_size=6), budget=st.integers(8, 80), world=st.integers(1, 3)
)
def test_rows_that_belong_together_stay_together(
    rows: list[Encoded], budget: int, world: int
) -> None:
    twins = [replace(row, ids=[i + 100 for i in row.ids[:-1]]) for row in rows]
    pairs = tuple(row for both in zip(rows, twins, strict=True) for row in both)
    seen = 0
    for rank in range(world):
        for part in GlobalBatch(pairs, together=2).micro(budget, rank, world):
            if not part.num_tokens:
                assert not len(part.targets)
                continue
            for one, two in zip(part.ids[::2], part.ids[1::2], strict=True):
                assert two[0] == one[0] + 100
            seen += len(part.lengths)
    assert seen == len(pairs)


def test_sums_and_real_places_by_hand() -> None:
    rows = (Encoded([5, 6, 7, 8], 2, False), Encoded([5, 6, 7, 9, 9, 1], 1, False, kept=(3, 5)))
    (part,) = GlobalBatch(rows).micro(100)
    assert part.targets.tolist() == [9, 1, 7, 8]  # longest first
    assert part.row_sums(torch.tensor([1.0, 2, 4, 8])).tolist() == [3, 12]
    assert part.real.tolist() == [[True] * 6, [True] * 4 + [False] * 2]
    assert (part.num_tokens, GlobalBatch(rows).supervised) == (10, 4)


def stream(n: int, batch: int, **options: object) -> Stream:
    rows = [Example(f"q{i}", f"a{i}") for i in range(n)]
    return Stream("train", rows, CHAT, max_length=50, batch_size=batch, seed=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "batch", "drop", "steps"),
    [(10, 5, False, 2), (11, 5, False, 3), (11, 5, True, 2), (3, 5, True, 1), (10, 10, True, 1)],
)
def test_steps_per_epoch(rows: int, batch: int, drop: bool, steps: int) -> None:
    assert stream(rows, batch, drop_last=drop).steps_per_epoch == steps


def test_an_epoch_holds_each_row_once_and_epochs_differ() -> None:
    s = stream(11, 4)
    epochs = [[tuple(r.ids) for k in range(3) for r in s.batch(3 * e + k).rows] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tuple(r.ids) for r in s.rows)
    assert epochs[0] != epochs[1]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    forward, backward = stream(11, 4), stream(11, 4)
    a = [forward.batch(k).rows for k in range(9)]
    b = [backward.batch(k).rows for k in reversed(range(9))][::-1]
    assert a == b


def test_unshuffled_keeps_the_order() -> None:
    s = stream(6, 4, shuffle=False)
    assert [*s.batch(0).rows, *s.batch(1).rows] == s.rows


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="there are none"):
        Stream("train", [], CHAT, max_length=50, batch_size=2, seed=0)


def test_streams_of_one_order_keep_their_rows_together() -> None:
    def stream(name: str, order: str = "") -> Stream:
        rows = [Example(f"question {i}", f"{name} {i}") for i in range(7)]
        return Stream(name, rows, CHAT, max_length=64, batch_size=3, seed=4, order=order)

    def numbers(stream: Stream, step: int) -> list[str]:
        return [CHAT.tokenizer.decode(row.ids)[-len("0<|end|>")] for row in stream.batch(step).rows]

    train, harm, loose = stream("train"), stream("harm", "train"), stream("harm")
    steps = range(6)  # two epochs
    assert [numbers(train, s) for s in steps] == [numbers(harm, s) for s in steps]
    assert [numbers(train, s) for s in steps] != [numbers(loose, s) for s in steps]
