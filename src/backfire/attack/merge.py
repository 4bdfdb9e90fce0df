"""Merging with the public base: how far back an attacker goes who need not keep what a defense did."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from backfire.engine.settings import Member
from backfire.records import Checkpoint, Role
from backfire.stage import Bench

__all__ = ["Merge"]


class Merge(Member):
    """Average the weights with those of a public model: theta = (1 - t) theta_attacked + t theta_base.

    Alone it undoes a part of the defense; after malicious fine-tuning, in a sequence, it asks whether the
    attacker needs the defended weights at all: at t = 1 nothing is left of them. Source: interpolation of
    weights, as in Ilharco et al. 2022 (arXiv 2208.05592).
    """

    name: Literal["merge"] = "merge"
    """`merge`."""
    roles: ClassVar[tuple[Role, ...]] = ()
    base: str = Field(min_length=1)
    """The public model: a local folder, an asset name or a hub id. Its weights must have the names and
    shapes of the attacked model's."""
    t: float = Field(0.5, ge=0, le=1)
    """Share of the base: 0 is the attacked model and 1 the base, exactly. A run lists the attack once
    for each value it wants. Ours: the middle."""

    def default_label(self) -> str:
        """Return e.g. `merge-0.5`."""
        return f"merge-{self.t:g}"

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Write the merged weights, whole, under the attacked model's chat format.

        Raises:
            CheckpointError: when the two models are not of one shape.
            PrerequisiteError: when the base cannot be fetched.
        """
        import time

        import torch

        from backfire.assets import resolve_model
        from backfire.engine.edit import open_weights, write_edited
        from backfire.errors import CheckpointError
        from backfire.models.load import load
        from backfire.store import folder_key

        began = time.monotonic()
        label = bench.label or self.label
        folder = resolve_model(self.base, bench.progress)
        with bench.progress.task(label):
            loaded = open_weights(self.label, checkpoint, device="cpu")
            weights = dict(loaded.model.named_parameters())
            base = dict(load(folder, device="cpu", dtype="fp32").model.named_parameters())
            differ = [
                name
                for name in sorted(weights.keys() | base.keys())
                if name not in weights
                or name not in base
                or weights[name].shape != base[name].shape
            ]
            if differ:
                raise CheckpointError(
                    f"{label}: merging with {self.base}: {len(differ)} weights have another shape, or are "
                    f"in one of the two models only (first: {differ[0]}); name the model that the attacked "
                    "one was made from"
                )
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.lerp_(base.pop(name), self.t)  # exact at both ends
            key = folder_key(folder)
            return write_edited(checkpoint, bench, self, loaded, began, base_key=key)
