"""One seed in, named child seeds out.

Every random choice of a run draws from a generator made here, by name, so that adding one never
shifts another: `rng(seed, "pairing")` is the same stream whatever else the run does.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["child_seed", "rng", "torch_generator"]


def child_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that belongs to `names` under `seed`."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream called `names`."""
    return np.random.default_rng(child_seed(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU torch generator for the stream called `names`."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(child_seed(seed, *names))
    return generator
