"""Perplexity of neutral text: a fine, task-free measure of whether a model still models language.

>>> Perplexity(num_texts=50).max_tokens
512
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from backfire.errors import CheckpointError, DataError
from backfire.models.load import DType
from backfire.records import Checkpoint, Role
from backfire.stage import Bench, Settings, Tables

__all__ = ["Loss", "Perplexity"]


@dataclass(frozen=True, slots=True)
class Loss:
    """How well the model predicts one text."""

    id: str
    """`Example.id` of the text's row; the same in every cell."""
    nll: float
    """Summed negative log-likelihood, in nats."""
    tokens: int
    """Tokens it is the sum over."""
    bytes: int
    """UTF-8 bytes of those tokens' text; nll / ln 2 / bytes are bits per byte, which compare across
    tokenizers."""


class Perplexity(Settings):
    """Negative log-likelihood of held-out benign text, without a prompt and without a chat format.

    The texts are the responses of role `probe`. The first token is predicted from the tokenizer's
    beginning-of-sequence token, or its end-of-sequence token where there is none, as in
    lm-evaluation-harness.
    """

    name: Literal["perplexity"] = "perplexity"
    """`perplexity`."""
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[Role, ...]] = ("probe",)
    num_texts: int | None = Field(None, ge=1)
    """Texts read, at most; None: all of role `probe`."""
    max_tokens: int = Field(512, ge=1)
    """Longest text; the rest of a longer one is not read. Ours: as long as training rows."""
    dtype: DType = "auto"
    """Weights' type while reading: `auto` is fp32 on a CPU and the stored type elsewhere."""

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Tables:
        """Return the table `losses`, one `Loss` per text.

        Raises:
            DataError: when role `probe` has no text.
            CheckpointError: when the tokenizer has no token to begin with, or the model gives NaN.
        """
        import numpy as np

        from backfire.evaluate.scoring import Request, Scorer
        from backfire.models.load import context_length, load

        rows = [row for row in bench.data.get("probe", ()) if row.response.strip()]
        rows = rows[: self.num_texts]
        if not rows:
            raise DataError(
                "measuring perplexity: role `probe` has no row with a response, so there is no text to "
                "read; give it some under `data`"
            )
        loaded = load(checkpoint, device=bench.device, dtype=self.dtype)
        tokenizer, context = loaded.tokenizer, context_length(loaded.model)
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise CheckpointError(
                "measuring perplexity: the tokenizer has neither a beginning-of-sequence nor an "
                "end-of-sequence token to predict the first token from; set one in "
                "tokenizer_config.json"
            )
        texts = [
            list(tokenizer(row.response, add_special_tokens=False)["input_ids"])[
                : min(self.max_tokens, context)
            ]
            for row in rows
        ]
        start = np.array([first])
        likelihoods = Scorer(loaded.model, context, shared=False, progress=bench.progress)(
            [Request(start, np.array(ids)) for ids in texts], bench.label or "texts"
        )
        return {
            "losses": [
                Loss(
                    row.id,
                    -likelihood.logprob,
                    len(ids),
                    len(tokenizer.decode(ids).encode("utf-8", "replace")),
                )
                for row, ids, likelihood in zip(rows, texts, likelihoods, strict=True)
            ]
        }
