"""Fine-tuning on harmful pairs in another language than the one the defense was made in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from backfire.attack.finetune import FineTuning, qi_training
from backfire.engine.settings import Training
from backfire.errors import DataError
from backfire.progress import Silent
from backfire.records import Checkpoint, Example, Role
from backfire.stage import Bench

__all__ = ["Multilingual"]


class Multilingual(FineTuning):
    """Fine-tune on translated harmful pairs from a file.

    The attacker needs the weights and harmful pairs in that language. The attacked model is asked the run's
    own evaluation prompts; `asked_in` says in which language these are, and the label shows it. To ask in
    the pairs' language, give translated prompts as the run's evaluation rows.
    Source: TamperBench, which uses French pairs.
    """

    name: Literal["multilingual"] = "multilingual"
    """`multilingual`."""
    roles: ClassVar[tuple[Role, ...]] = ()
    path: Path
    """A `.jsonl`, `.json`, `.csv` or `.parquet` file of pairs."""
    prompt: str = "prompt"
    """Column of the translated prompt. Ours."""
    response: str = "response"
    """Column of the translated compliant answer. Ours."""
    language: str = Field(min_length=1)
    """Language of the pairs, e.g. `fr`; for labels and reports."""
    asked_in: str = Field("en", min_length=1)
    """Language of the run's evaluation prompts, which nothing checks. Ours: the built-in hazards'."""
    shots: int = Field(100, ge=1)
    """Pairs, from the first. Ours: as many as `harmful`."""
    training: Training = qi_training(5e-5, 5, 10)
    """Those of `harmful` (Qi et al. 2023), so that the language is the difference."""

    def default_label(self) -> str:
        """Return e.g. `mft-fr-asked-en-100-full`."""
        return f"mft-{self.language}-asked-{self.asked_in}-{self.shots}-{self._suffix()}"

    def rows_used(self, counts: Mapping[str, int]) -> dict[Role, int]:
        """Return nothing: the rows come from the file."""
        return {}

    def epoch_rows(self, counts: Mapping[str, int]) -> int:
        """Return the shots."""
        return self.shots

    def own_rows(self) -> Sequence[Example]:
        """Return the first `shots` pairs of the file.

        Raises:
            DataError: when the file is wrong, or has too few pairs.
        """
        from backfire.data.table import Table

        source = Table(path=self.path, harmful=True, prompt=self.prompt, response=self.response)
        rows = [row for row in source(Silent()) if row.response.strip()]
        if len(rows) < self.shots:
            raise DataError(
                f"{self.label}: it needs {self.shots} pairs, and {self.path} has {len(rows)} rows with a "
                "prompt and an answer; lower `shots`, or give a longer file"
            )
        return rows[: self.shots]

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        """Fine-tune on the pairs."""
        return self.attack(checkpoint, bench, self.own_rows())
