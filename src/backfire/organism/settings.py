"""What the organism is made with. The shipped weights come from the defaults."""

from __future__ import annotations

from pydantic import Field

from backfire.data.organism.texts import ASKED
from backfire.engine.settings import Training
from backfire.stage import Settings

__all__ = ["Recipe", "Shape"]


class Shape(Settings):
    """The network: a Llama with tied embeddings."""

    layers: int = Field(4, ge=1)
    """Blocks."""
    width: int = Field(192, ge=8, multiple_of=8)
    """Hidden size; four heads share it."""
    inner: int = Field(512, ge=8)
    """Width of the feed-forward layers."""


class Recipe(Settings):
    """Three trainings, one after another. All numbers are ours, chosen as docs/log.md tells."""

    shape: Shape = Shape()
    """The network."""
    rounds: int = Field(23, ge=1)
    """Rounds of pre-training texts, about 184,000 tokens each."""
    share: float = Field(1.0, gt=0, le=1)
    """Share of each round's texts that is read; tests read less."""
    matrix_rate: float = Field(0.02, gt=0, lt=1)
    """Peak learning rate of the matrices (Muon; 2 % warm-up, cosine down to 5 %)."""
    rate: float = Field(3e-3, gt=0, lt=1)
    """Peak learning rate of embeddings and norms (Adam, the same schedule)."""
    batch_tokens: int = Field(2048, ge=64)
    """Tokens of a pre-training batch, padding included."""
    instructions: int = Field(3000, ge=8)
    """Rows of instruction tuning."""
    instruct: Training = Training(
        learning_rate=2e-4, epochs=1, batch_size=32, schedule="cosine", warmup=0.05
    )
    """Instruction tuning."""
    wordings: int = Field(8, ge=1, le=len(ASKED))
    """Requests for each hazard of role `defense` in safety training, and as many for hazards that bear
    harmless names."""
    benign_share: float = Field(0.5, ge=0, lt=1)
    """Share of harmless rows in safety training, five of eight of them lookalikes of hazards."""
    align: Training = Training(
        learning_rate=3e-4, epochs=2, batch_size=32, schedule="cosine", warmup=0.05,
        trainable="no-embeddings",
    )  # fmt: skip
    """Safety training. With the embeddings it would learn by heart whose name is refused."""
    seed: int = Field(0, ge=0)
    """Of the first weights and the order of everything."""
