"""Prefilling: the attacker writes the first words of the answer, and the model goes on from there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from backfire.attack.asked import Asked

__all__ = ["Prefill"]


class Prefill(Asked):
    """Begin every answer with words of the attacker's.

    Nothing is trained and no data is needed: whoever runs the model himself, or through an API that lets
    him write the answer's beginning, can do this. Source: Qi et al. 2024 (arXiv 2406.05946), who
    prefill with the beginnings of harmful answers; Andriushchenko et al. 2024 (arXiv 2404.02151).
    """

    name: Literal["prefill"] = "prefill"  # type: ignore[assignment]
    """`prefill`."""
    opening: str = Field("Sure, here is", min_length=1)
    """The words. They are neither trained on nor judged. Ours, after AdvBench's targets ("Sure, here is
    ..."), which say what the prompt asks for as well."""

    def default_label(self) -> str:
        """Return `prefill`, and what else is asked otherwise."""
        return "-".join([self.name, *(name for name in self.asks if name != "opening")])
