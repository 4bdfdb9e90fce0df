"""How far weights moved, by hand."""

from __future__ import annotations

import pytest
import torch

from backfire.numerics.weights import movement


def test_movement_by_hand() -> None:
    """(3, 4) -> (3, 4.5) and (0) -> (0): distance .5 over length 5 is .1; one of three moved."""
    before = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}
    after = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([0.0])}
    moved = movement(before, after)
    assert moved.relative_distance == pytest.approx(0.1)
    assert moved.share_changed == pytest.approx(1 / 3)
    assert moved.share_lost_in_bf16 == 0


def test_an_update_below_bf16_resolution_is_counted_as_lost() -> None:
    """bf16 keeps 8 significant bits: 1 and 1 + 2^-10 round alike, 1 and 1 + 2^-6 do not."""
    before = {"a": torch.ones(2)}
    after = {"a": torch.tensor([1 + 2**-10, 1 + 2**-6])}
    moved = movement(before, after)
    assert moved.share_changed == 1
    assert moved.share_lost_in_bf16 == pytest.approx(0.5)


def test_nothing_moved() -> None:
    same = {"a": torch.ones(3)}
    assert movement(same, same).share_changed == 0
    assert movement(same, same).relative_distance == 0


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="share no"):
        movement({"a": torch.ones(1)}, {"b": torch.ones(1)})
