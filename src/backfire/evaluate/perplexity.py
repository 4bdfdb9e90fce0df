"""Perplexity of neutral text: a fine, task-free measure of whether a model still models language.

>>> Perplexity(num_texts=50).max_tokens
512
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from backfire.data.files import read
from backfire.errors import CheckpointError, DataError
from backfire.models.load import DType
from backfire.records import Checkpoint, Role
from backfire.stage import Bench, Settings, Tables

__all__ = ["Loss", "Perplexity"]


@dataclass(frozen=True, slots=True)
class Loss:
    """How well the model predicts one text."""

    id: str
    """`Example.id` of the text's row, or 16 digits of the SHA-256 of a file's text; the same in every
    cell."""
    nll: float
    """Summed negative log-likelihood, in nats."""
    tokens: int
    """Tokens it is the sum over."""
    bytes: int
    """UTF-8 bytes of those tokens' text; nll / ln 2 / bytes are bits per byte, which compare across
    tokenizers."""


class _Needed:
    """The rows a `Perplexity` reads: none where it has a file of its own."""

    def __get__(self, one: Perplexity | None, owner: type[Perplexity]) -> tuple[Role, ...]:
        return () if one is not None and one.path is not None else ("probe",)


class Perplexity(Settings):
    """Negative log-likelihood of held-out benign text, without a prompt and without a chat format.

    The texts are the responses of role `probe`, or a file's. The first token is predicted from the
    tokenizer's beginning-of-sequence token, or its end-of-sequence token where there is none, as in
    lm-evaluation-harness.
    """

    name: Literal["perplexity"] = "perplexity"
    """`perplexity`."""
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[Role, ...]] = _Needed()  # type: ignore[assignment]
    path: Path | None = None
    """A file of neutral texts: `.jsonl`, `.json`, `.csv` or `.parquet` with a column, or `.txt` with
    blank lines between texts. None: role `probe`."""
    column: str = "text"
    """Column of the texts in that file."""
    num_texts: int | None = Field(None, ge=1)
    """Texts read, at most, the first ones; None: all."""
    max_tokens: int = Field(512, ge=1)
    """Longest text; the rest of a longer one is not read. Ours: as long as training rows."""
    dtype: DType = "auto"
    """Weights' type while reading: `auto` is fp32 on a CPU and the stored type elsewhere."""

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Tables:
        """Return the table `losses`, one `Loss` per text.

        Raises:
            DataError: when there is no text, or the file is wrong.
            CheckpointError: when the tokenizer has no token to begin with.
            DivergedError: when the model gives NaN.
        """
        import numpy as np

        from backfire.evaluate.scoring import Request, Scorer
        from backfire.models.load import context_length, load

        rows = self._texts(bench)[: self.num_texts]
        loaded = load(checkpoint, device=bench.device, dtype=self.dtype)
        tokenizer, context = loaded.tokenizer, context_length(loaded.model.config)
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise CheckpointError(
                "measuring perplexity: the tokenizer has neither a beginning-of-sequence nor an "
                "end-of-sequence token to predict the first token from; set one in "
                "tokenizer_config.json"
            )
        texts = [
            list(tokenizer(text, add_special_tokens=False)["input_ids"])[
                : min(self.max_tokens, context)
            ]
            for _, text in rows
        ]
        start = np.array([first])
        likelihoods = Scorer(loaded.model, context, shared=False, progress=bench.progress)(
            [Request(start, np.array(ids)) for ids in texts], bench.label or "texts"
        )
        return {
            "losses": [
                Loss(
                    name,
                    -likelihood.logprob,
                    len(ids),
                    len(tokenizer.decode(ids).encode("utf-8", "replace")),
                )
                for (name, _), ids, likelihood in zip(rows, texts, likelihoods, strict=True)
            ]
        }

    def _texts(self, bench: Bench) -> list[tuple[str, str]]:
        """Return the texts that are not empty with their ids, in order."""
        if self.path is None:
            rows = [(row.id, row.response) for row in bench.data.get("probe", ())]
            lack = (
                "role `probe` has no row with a response, so there is no text to read; give it some "
                "under `data`, or name a file of texts as `path`"
            )
        else:
            texts = dict.fromkeys(_read_texts(self.path, self.column))
            rows = [(hashlib.sha256(t.encode()).hexdigest()[:16], t) for t in texts]
            lack = f"{self.path} holds no text; give a file that does"
        found = [(name, text) for name, text in rows if text.strip()]
        if not found:
            raise DataError(f"measuring perplexity: {lack}")
        return found


def _read_texts(path: Path, column: str) -> list[str]:
    if path.suffix != ".txt":
        return ["" if row.value(column) is None else row.text(column) for row in read(path)]
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"reading {path}: {reason}; correct the path, or save the file as UTF-8"
        ) from error
    return [part.strip() for part in re.split(r"\n\s*\n", whole)]
