"""A run folder, read once: what it holds and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backfire.errors import CheckpointError
from backfire.store import SCHEMA_VERSION, read_json, read_table

__all__ = ["TABLES", "Run", "read_run"]

Row = Mapping[str, Any]

TABLES = {
    "cells": "the list of the grid's cells",
    "exchanges": "what the models answered; without it there are no samples",
    "verdicts": "what the judges said",
    "labels": "the answer taxonomy",
    "answers": "the multiple-choice items; without it there is no chance line",
    "tasks": "which version and split of each multiple-choice set was asked",
    "losses": "the texts behind perplexity",
    "measurements": "every number of this page in long format",
    "trajectory": "loss by training step",
    "effects": "whether training moved the weights",
    "pairs": "SDD's pairs of prompt and irrelevant answer",
}
"""Tables a complete run may hold, and what each one is for."""

_MADE_BY = {
    "exchanges": "harmfulness", "verdicts": "harmfulness", "labels": "harmfulness",
    "answers": "capability", "tasks": "capability", "losses": "perplexity",
}  # fmt: skip
"""The evaluation that fills a table; a run that did not plan it lacks nothing."""


@dataclass(frozen=True)
class Run:
    """Everything the report knows."""

    folder: Path
    manifest: Row
    conclusion: Row
    """Empty when the run has not come to one."""
    tables: Mapping[str, Sequence[Row]]
    missing: Sequence[str]
    """One sentence for each thing that is not there."""
    search: Row = field(default_factory=dict)
    """What searches over an attacker's settings came to; empty when there were none."""

    def rows(self, table: str) -> Sequence[Row]:
        """Return a table's rows; none when it is absent (which `missing` then says)."""
        return self.tables.get(table, ())


def read_run(folder: Path) -> Run:
    """Return what a run folder holds.

    Raises:
        CheckpointError: when it is not a run folder, was written by a newer version, or a file in it is
            damaged. An absent table is no error: the page says so.
    """
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise CheckpointError(
            f"reading run folder {folder}: it has no manifest.json, so it is not a run folder; "
            "give the folder that `backfire run` printed"
        )
    manifest = read_json(manifest_path)
    if not isinstance(manifest, dict):
        raise CheckpointError(f"reading {manifest_path}: it does not hold an object; restore it")
    written = manifest.get("schema_version", SCHEMA_VERSION)
    if not isinstance(written, int) or written > SCHEMA_VERSION:
        raise CheckpointError(
            f"reading run folder {folder}: its layout is version {written}, this program knows up to "
            f"{SCHEMA_VERSION}; upgrade backfire"
        )
    missing = []
    conclusion: Row = {}
    if (folder / "conclusion.json").is_file():
        conclusion = read_json(folder / "conclusion.json")
    else:
        missing.append("conclusion.json: the run has not come to a conclusion; there is no verdict")
    tables: dict[str, list[Row]] = {}
    for name, purpose in TABLES.items():
        path = folder / "tables" / f"{name}.parquet"
        if path.is_file():
            tables[name] = read_table(path, dict)
        elif _planned(name, manifest.get("settings") or {}):
            missing.append(f"tables/{name}.parquet: {purpose}")
    search = read_json(folder / "search.json") if (folder / "search.json").is_file() else {}
    return Run(folder, manifest, conclusion, tables, tuple(missing), search)


def _planned(table: str, settings: Row) -> bool:
    """Return whether a run with these settings makes a table."""
    if table == "pairs" and "defenses" in settings:
        return any("pairing" in d and d.get("answers") != "refusal" for d in settings["defenses"])
    evaluations = [evaluation["name"] for evaluation in settings.get("evaluations") or ()]
    return not evaluations or _MADE_BY.get(table, evaluations[0]) in evaluations
