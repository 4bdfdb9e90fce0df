"""Data sets as folders of `<split>.parquet`, in the hub's columns whatever file they came from."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backfire.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ARC",
    "Split",
    "Tables",
    "from_categories",
    "from_prompts",
    "from_requests",
    "from_seeds",
]

Columns = Mapping[str, str]
"""Column name to kind: `string`, `int`, `bool`, `strings`, `choices`, or `any` (kept as it is)."""

ARC: Columns = {"id": "string", "question": "string", "choices": "choices", "answerKey": "string"}
"""ARC's columns; OpenBookQA's differ only in `question_stem`."""

Reshape = Callable[[list[dict[str, Any]], str], list[dict[str, Any]]]
"""Rows as the source has them, and the file's stem, to rows as the hub has them."""


@dataclass(frozen=True)
class Split:
    """One split: which raw files hold it, and what must be in it."""

    files: str
    """Pattern of the raw files; their rows are joined in name order."""
    rows: int | None = None
    """Rows it must have: the check that the file is the split it is said to be."""
    reshape: Reshape | None = None
    """How to bring rows of another form into the hub's columns."""


@dataclass(frozen=True)
class Tables:
    """Builds a data-set folder: one Parquet file a split."""

    columns: Columns
    splits: Mapping[str, Split]
    optional: ClassVar[tuple[str, ...]] = ()
    sort_by: str | None = None
    """Column to order rows by (stably), where sources list the parts in different orders."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return each split's pattern."""
        return tuple(dict.fromkeys(split.files for split in self.splits.values()))

    def __call__(self, raw: Path, target: Path) -> dict[str, Any]:
        """Write `<split>.parquet` for each split and return rows and origin of each.

        Raises:
            DataError: when a file is missing or damaged, a column is absent or the rows miscount.
        """
        import pyarrow.parquet as pq

        facts = {}
        for name, split in self.splits.items():
            table = self._read(raw, name, split)
            pq.write_table(table, target / f"{name}.parquet", compression="zstd")
            facts[name] = {"rows": table.num_rows, "from": split.files}
        return {"splits": facts, "columns": list(self.columns)}

    def _read(self, raw: Path, name: str, split: Split) -> pa.Table:
        import pyarrow as pa

        paths = sorted(raw.glob(split.files))
        if not paths:
            raise DataError(f"building split {name!r}: no file matches {split.files!r}")
        parts = []
        for path in paths:
            try:
                part = _read_file(path) if split.reshape is None else None
                if split.reshape is not None:
                    part = pa.Table.from_pylist(split.reshape(_read_rows(path), path.stem))
                parts.append(_cast(part, self.columns))
            except (
                pa.ArrowException,
                OSError,
                EOFError,
                lzma.LZMAError,
                KeyError,
                ValueError,
            ) as e:
                raise DataError(f"building split {name!r} from {path.name}: {e}") from e
        table = pa.concat_tables(parts)
        if self.sort_by is not None:
            table = table.sort_by(self.sort_by)
        if not table.num_rows or (split.rows is not None and table.num_rows != split.rows):
            raise DataError(
                f"building split {name!r}: {table.num_rows} rows in {split.files!r}, expected "
                f"{split.rows or 'some'}; the source holds another split or was changed"
            )
        return table


def _cast(table: pa.Table, columns: Columns) -> pa.Table:
    import pyarrow as pa

    strings = pa.list_(pa.string())
    kinds = {
        "string": pa.string(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "strings": strings,
        "choices": pa.struct([("text", strings), ("label", strings)]),
    }
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise ValueError(f"no column {', '.join(lacking)}; it has {', '.join(table.column_names)}")
    wanted = [
        pa.field(name, kinds[kind] if kind in kinds else table.schema.field(name).type)
        for name, kind in columns.items()
    ]
    return table.select(list(columns)).cast(pa.schema(wanted))


def _read_file(path: Path) -> pa.Table:
    """Return a file's table, its form told by the suffix."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_table(path)
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "rb") as file:
            return pa.ipc.open_stream(file).read_all()
    return pa.json.read_json(pa.BufferReader(_bytes(path)))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import json

    import yaml

    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = _read_file(path).to_pylist()
        return rows
    text = _bytes(path).decode("utf-8")
    if path.suffix == ".csv":
        return [{"text": row[0]} for row in csv.reader(io.StringIO(text)) if row]
    if path.suffix == ".prompt":
        seeds: list[dict[str, Any]] = yaml.safe_load(text)["seeds"]
        return seeds
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _bytes(path: Path) -> bytes:
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, Path.open)(path, "rb") as file:
        return bytes(file.read())


# -------------------------------------------------------------------------------------------- reshaping


def from_requests(stem: str) -> Reshape:
    """Return a reshape of OLMES scoring requests to ARC rows whose question column is `stem`.

    A request is one answer option; the rows of a question carry the same document. The options'
    own labels are lost there, so they are lettered anew.
    """

    def reshape(rows: list[dict[str, Any]], _: str) -> list[dict[str, Any]]:
        documents = {row["doc"]["id"]: row["doc"] for row in rows}
        return [_question(document, stem) for document in documents.values()]

    return reshape


def _question(document: Mapping[str, Any], stem: str) -> dict[str, Any]:
    letters = "ABCDEFGH"[: len(document["choices"])]
    text = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return {
        "id": document["id"],
        stem: text,
        "choices": {"text": document["choices"], "label": list(letters)},
        "answerKey": letters[document["gold"]],
    }


def from_prompts(rows: list[dict[str, Any]], _: str) -> list[dict[str, Any]]:
    """Return rows of prompt and target as goal, target and no categories."""
    return [{"goal": row["prompt"], "target": row["target"], "categories": []} for row in rows]


def from_seeds(rows: list[dict[str, Any]], _: str) -> list[dict[str, Any]]:
    """Return prompt seeds as goal, target (empty where the seed has none) and categories."""
    return [
        {
            "goal": row["value"],
            "target": (row.get("metadata") or {}).get("target", ""),
            "categories": list(row.get("harm_categories") or []),
        }
        for row in rows
    ]


def from_categories(rows: list[dict[str, Any]], stem: str) -> list[dict[str, Any]]:
    """Return lines of `category_<n>.csv` as prompt and category number."""
    return [{"prompt": row["text"], "category": stem.rpartition("_")[2]} for row in rows]
