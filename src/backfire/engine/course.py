"""What a training works out before its first step, kept for whoever goes on with the same course."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backfire.stage import Bench
from backfire.store import content_key, read_json, write_json

__all__ = ["once"]


def once(bench: Bench, name: str, parts: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return what a function makes; made once for an interrupted stage and for all points of a training.

    It lies beside the resumable state, and goes with it.

    Args:
        bench: Of the stage.
        name: Of what is made.
        parts: What it follows from.
        make: Makes it: what JSON can hold.
    """
    folder = bench.state or bench.workdir / "state"
    place = folder / f"{name}-{content_key(*parts)}.json"
    if not place.is_file():
        write_json(place, make())
    return read_json(place)
