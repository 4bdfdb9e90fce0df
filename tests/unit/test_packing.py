"""Rows of sequences that begin alike: nothing lost, nothing twice, nobody sees a stranger."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.evaluate.packing import common, flatten, plan

# Few different tokens, so that prefixes and whole sequences collide often; long ones so that trunks form.
SEQUENCES = st.lists(
    st.tuples(st.integers(0, 70), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
    unique_by=lambda pair: (min(pair[0], 1) and pair[0], tuple(pair[1])),
).map(lambda pairs: [np.array([7] * stem + tail) for stem, tail in pairs])


@settings(max_examples=200, deadline=None)
@given(SEQUENCES, st.integers(1, 40))
def test_every_sequence_stands_once_and_sees_exactly_its_own_tokens(
    sequences: list[np.ndarray], row_tokens: int
) -> None:
    groups = plan(sequences, [len(s) - 1 for s in sequences], row_tokens)
    members = [member for group in groups for row in group.rows for member in row]
    assert sorted(members) == list(range(len(sequences)))
    for group in groups:
        trunk = len(group.trunk)
        for members in group.rows:
            row = flatten([sequences[m] for m in members], trunk)
            for member, path in zip(members, row.paths, strict=True):
                sequence = sequences[member]
                assert trunk < len(sequence)  # the last token is read, so it is never in the trunk
                assert [*group.trunk, *row.tokens[path]] == sequence.tolist()
                assert row.positions[path].tolist() == list(range(trunk, len(sequence)))
                for depth, node in enumerate(path):
                    seen = np.flatnonzero(row.attends[node])
                    expected = [*range(trunk), *(trunk + path[: depth + 1])]
                    assert seen.tolist() == sorted(expected)


def test_a_long_shared_beginning_becomes_a_trunk_and_a_short_one_does_not() -> None:
    long = [np.array([7] * 60 + [i, i, i]) for i in range(6)]
    (group,) = plan(long, [62] * 6, row_tokens=8)
    assert len(group.trunk) == 60
    assert [len(row) for row in group.rows] == [2, 2, 2]
    short = [np.array([7] * 20 + [i, i, i]) for i in range(6)]
    (group,) = plan(short, [22] * 6, row_tokens=24)
    assert len(group.trunk) == 0


def test_a_trunk_ends_before_the_first_token_that_is_read() -> None:
    sequences = [np.array([7] * 80 + [i] * 20) for i in range(3)]
    (group,) = plan(sequences, [50, 90, 90], row_tokens=30)
    assert len(group.trunk) == 50


def test_options_of_one_question_are_not_torn_apart_for_a_few_tokens() -> None:
    stems = [np.array([q] * 10 + [option]) for q in range(3) for option in range(4)]
    (group,) = plan(stems, [10] * 12, row_tokens=16)
    assert [len(row) for row in group.rows] == [4, 4, 4]


def test_shared_beginnings_are_counted_once() -> None:
    row = flatten([np.array([1, 2, 3]), np.array([1, 2, 3, 4]), np.array([1, 5])])
    assert row.tokens.tolist() == [1, 2, 3, 4, 5]
    assert common(np.array([1, 2]), np.array([1, 2, 3])) == 2
