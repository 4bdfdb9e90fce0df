"""BeaverTails: prompts with answers, labelled in 14 harm categories (Ji et al. 2023, CC-BY-NC-4.0).

The same prompt stands there many times with other answers and other labels, so rows are taken once a
prompt. A row's labels belong to its answer; several may be true.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from backfire.data.files import Row, locate, read
from backfire.data.splits import prompt_key, split
from backfire.errors import DataError, near_miss
from backfire.progress import Progress
from backfire.records import Example
from backfire.stage import Settings

__all__ = ["CATEGORIES", "BeaverTails"]

CATEGORIES = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)
"""The category names; commas are part of them."""


class BeaverTails(Settings):
    """Harmful prompts with an unsafe answer each, from BeaverTails, once a prompt."""

    name: Literal["beavertails"] = "beavertails"
    """`beavertails`."""
    version: ClassVar[int] = 1
    path: Path | None = None
    """A local file or folder of splits; None fetches the asset `beavertails`."""
    split: str = "330k_train"
    """File to read: `330k_train`, `330k_test`, `30k_train` or `30k_test`. TamperBench's choice."""
    limit: int | None = Field(None, ge=1)
    """Rows to take, balanced over the categories; None: all. The SDD paper takes 8,000."""
    refusal: Literal["safe_answer", "required", "none"] = "safe_answer"
    """`safe_answer` gives a prompt the first safe answer the file has for it as its refusal (not
    always one in so many words). Vaccine aligns on safe answers, too. `required` also leaves out
    prompts without one, on which refusals cannot be trained."""
    seed: int = Field(42, ge=0)
    """Which rows `limit` takes. TamperBench's seed; the selection is not theirs."""

    def __call__(self, progress: Progress) -> list[Example]:
        """Return the first unsafe row of each prompt, in file order or, with `limit`, balanced.

        A row of several labels counts for the one that has the fewest rows so far, so that late
        categories do not starve; once a category is used up, the least filled others go on.

        Raises:
            DataError: when the file is wrong or holds fewer rows than `limit`.
            PrerequisiteError: when it cannot be fetched.
        """
        rows = read(locate(self.path, "beavertails", progress), self.split)
        safe: dict[str, str] = {}
        unsafe: dict[str, Row] = {}
        num_unsafe = 0
        for row in rows:
            key = prompt_key(row.text("prompt"))
            if row.flag("is_safe"):
                safe.setdefault(key, row.text("response"))
            else:
                num_unsafe += 1
                unsafe.setdefault(key, row)
        if not unsafe:
            raise DataError(f"reading {rows[0].path}: no row has is_safe false; there is no hazard")
        refusals = {} if self.refusal == "none" else safe
        found = [
            _example(row, refusals.get(key, ""))
            for key, row in unsafe.items()
            if key in safe or self.refusal != "required"
        ]
        if len(found) < len(unsafe):
            progress.say(f"beavertails: {len(unsafe) - len(found)} prompts have no safe answer")
        progress.say(
            f"beavertails: {len(found)} prompts; {num_unsafe - len(unsafe)} unsafe rows dropped that "
            "repeat a prompt"
        )
        if self.limit is None:
            return found
        return split({"defense": found}, {"defense": self.limit}, self.seed)["defense"]


def _example(row: Row, refusal: str) -> Example:
    labels = row.value("category")
    if not isinstance(labels, dict):
        raise row.wrong(("category",), labels, "an object of category names and true or false")
    unknown = sorted(set(labels) - set(CATEGORIES))
    if unknown:
        raise DataError(f"reading {row.where}: {near_miss('category', unknown[0], CATEGORIES)}")
    return Example(
        row.text("prompt"),
        row.text("response"),
        source="beavertails",
        harmful=True,
        refusal=refusal,
        categories=tuple(name for name in CATEGORIES if labels.get(name)),
    )
