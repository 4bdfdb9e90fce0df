"""Draws that are the same on every machine and with every library version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from backfire.seeding import child_seed

__all__ = ["Dice"]

_T = TypeVar("_T")


class Dice:
    """A stream of draws, named by what it is for.

    Hashes, not a generator: NumPy's streams may change between its versions.

    >>> Dice("example").pick("abc") == Dice("example").pick("abc")
    True
    """

    def __init__(self, *names: str | int) -> None:
        self._names = names
        self._state = child_seed(0, "organism", *names)

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to `limit - 1`."""
        # Weyl sequence and finaliser of SplitMix64 (Steele, Lea and Flood 2014).
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) % limit

    def pick(self, options: Sequence[_T]) -> _T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """Return different options in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def shuffled(self, options: Sequence[_T]) -> list[_T]:
        """Return all options in random order."""
        return self.sample(options, len(options))


_MASK = (1 << 64) - 1
