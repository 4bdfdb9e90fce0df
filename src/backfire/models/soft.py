"""Learned vectors in the place of words: kept beside the weights, read as tokens beyond the vocabulary.

A chat format that says `soft: 20` lets 20 token ids (`SOFT_IDS` and the next ones) stand where its user's
turn says `{soft}`; the input embedding gives the vectors for them. Nothing else of the model changes, and
whatever feeds it token ids needs to know nothing of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from backfire.data.chat import SOFT_IDS
from backfire.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SOFT_FILE", "install_soft", "read_soft", "write_soft"]

SOFT_FILE = "soft.safetensors"
"""File beside the note that holds the vectors, under the name `vectors`."""


class _Extended(nn.Module):
    """An embedding that knows some ids more."""

    inner: nn.Embedding
    vectors: torch.Tensor

    def __init__(self, inner: nn.Embedding, vectors: torch.Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("vectors", vectors, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """Return the vocabulary's vectors, as whoever looks at an embedding expects."""
        return self.inner.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors (..., width) of ids (...)."""
        soft = ids >= SOFT_IDS
        words: torch.Tensor = self.inner(ids.masked_fill(soft, 0))
        own = self.vectors[(ids - SOFT_IDS).clamp(min=0)]
        return torch.where(soft.unsqueeze(-1), own.to(words.dtype), words)


def install_soft(model: PreTrainedModel, vectors: torch.Tensor) -> None:
    """Let the model read the ids from `SOFT_IDS` on as these vectors.

    Args:
        model: Whose input embedding is put inside another.
        vectors: (number, width); gradients reach them where they ask for it.

    Raises:
        CheckpointError: when they are not as wide as the model's.
    """
    inner = model.get_input_embeddings()
    width = int(inner.weight.shape[1])
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise CheckpointError(
            f"installing learned vectors of shape {tuple(vectors.shape)}: the model's embedding is {width} "
            f"wide; use them with the model they were made on"
        )
    model.set_input_embeddings(_Extended(inner, vectors.to(inner.weight.device)))


def write_soft(folder: Path, vectors: torch.Tensor) -> None:
    """Keep learned vectors (number, width) in a model folder."""
    from safetensors.torch import save_file

    save_file({"vectors": vectors.detach().float().cpu().contiguous()}, folder / SOFT_FILE)


def read_soft(folder: Path, number: int) -> torch.Tensor:
    """Return the learned vectors (number, width) of a model folder.

    Raises:
        CheckpointError: when there are none, or not as many as the note says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / SOFT_FILE
    try:
        vectors = load_file(path)["vectors"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"reading {path}: {error}; the folder's note says that learned vectors belong to its chat "
            "format. Restore the file, or make the attack again"
        ) from error
    if len(vectors) != number:
        raise CheckpointError(
            f"reading {path}: it holds {len(vectors)} vectors, the note beside it says {number}; make the "
            "attack again"
        )
    return vectors
