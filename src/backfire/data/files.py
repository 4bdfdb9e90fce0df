"""Rows of JSONL, JSON, CSV and Parquet files, each of which can say where it stands.

>>> rows = read(Path("prompts.jsonl"))                                  # doctest: +SKIP
>>> rows[0].text("prompt"), rows[0].text("answer", default="")          # doctest: +SKIP

Whatever is wrong with a file is a DataError that names the file, the line, what was met and what is
wanted. `.gz` files are read as they are.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfire.errors import DataError, PrerequisiteError, near_miss
from backfire.progress import Progress

__all__ = ["Row", "locate", "read"]

_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place."""

    values: Mapping[str, Any]
    path: Path
    number: int
    """Line of a JSONL or CSV file, else number of the row; from 1."""

    @property
    def where(self) -> str:
        """Return the place as a message says it."""
        kind = "line" if _form(self.path) in (".jsonl", ".csv") else "row"
        return f"{self.path}, {kind} {self.number}"

    def value(self, *names: str) -> Any:
        """Return the value of the first of these columns that the row has.

        Raises:
            DataError: when it has none of them.
        """
        for name in names:
            if name in self.values:
                return self.values[name]
        wanted = " or ".join(repr(name) for name in names)
        raise DataError(
            f"reading {self.where}: it needs a column {wanted}; "
            f"{near_miss('column', names[0], self.values)}"
        )

    def text(self, *names: str, default: str | None = None) -> str:
        """Return a column's text; `default`, if given, where the column is absent or null.

        Raises:
            DataError: when there is no such column, or it holds no text.
        """
        if default is not None and all(self.values.get(name) is None for name in names):
            return default
        found = self.value(*names)
        if isinstance(found, str):
            return found
        raise self.wrong(names, found, "text")

    def flag(self, name: str) -> bool:
        """Return a column's truth value; CSV files may write it as true/false or 1/0.

        Raises:
            DataError: when there is no such column, or it holds something else.
        """
        found = self.value(name)
        words = {"true": True, "1": True, "false": False, "0": False}
        if str(found).lower() in words:
            return words[str(found).lower()]
        raise self.wrong((name,), found, "true or false")

    def wrong(self, names: Sequence[str], found: Any, wanted: str) -> DataError:
        """Return the error for a value of another kind than wanted."""
        name = next(name for name in names if name in self.values)
        met = "nothing" if found is None else f"{type(found).__name__} {found!r:.60}"
        return DataError(
            f"reading {self.where}: column {name!r} must hold {wanted}; met {met}. Correct the row, or "
            "name another column"
        )


def locate(path: Path | None, asset: str, progress: Progress, terms: str = "") -> Path:
    """Return the user's own path, or else the folder of a fetched asset.

    Args:
        path: The user's file or folder; None fetches.
        asset: Name in the catalog of assets.
        progress: Where a download reports.
        terms: For gated data: the page on which the owner's terms are accepted.

    Raises:
        PrerequisiteError: when it cannot be fetched; for gated data, with the way to get access.
    """
    if path is not None:
        return path
    from backfire.assets import fetch

    try:
        return fetch(asset, progress)
    except PrerequisiteError as error:
        access = (
            f"\n{asset} is gated: accept its terms on {terms}, log in with `hf auth login`, and try "
            "again" if terms else ""
        )  # fmt: skip
        raise PrerequisiteError(f"{error}{access}\nor give a local file as `path`") from error


def read(
    path: Path, split: str = "train", *, headless: tuple[str, ...] = (), marks: tuple[str, ...] = ()
) -> list[Row]:
    """Return every row of a file, or of a folder's file `<split>.<suffix>`.

    Args:
        path: A `.parquet`, `.jsonl`, `.json` (one array) or `.csv` file, the last three also `.gz`;
            or a folder that holds such a file.
        split: Name of the file in a folder.
        headless: Column names of a CSV file without a header.
        marks: With `headless`: a first line that holds one of these names is a header.

    Raises:
        DataError: when the file is missing, unreadable, damaged, of another form, or empty.
    """
    path = _file_of(path, split)
    form = _form(path)
    try:
        if form == ".parquet":
            rows = _parquet(path)
        elif form == ".jsonl":
            rows = list(_jsonl(path))
        elif form == ".json":
            rows = _json(path)
        else:
            rows = list(_csv(path, headless, marks))
    except FileNotFoundError:
        raise DataError(f"reading {path}: there is no such file; correct the path") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"reading {path}: it cannot be read ({reason}); restore it") from error
    if not rows:
        raise DataError(f"reading {path}: it holds no rows; give a file that does")
    return rows


def _form(path: Path) -> str:
    """Return a file's suffix without `.gz`."""
    return Path(path.name.removesuffix(".gz")).suffix


def _file_of(path: Path, split: str) -> Path:
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir())
        for suffix in _SUFFIXES:
            if f"{split}{suffix}" in names:
                return path / f"{split}{suffix}"
        splits = {name.removesuffix(s) for name in names for s in _SUFFIXES if name.endswith(s)}
        raise DataError(
            f"reading folder {path}: "
            + (near_miss("split", split, splits) if splits else "it holds no data file")
            + f"; a split is a file named {split} with one of {', '.join(_SUFFIXES)}"
        )
    if not path.name.endswith(_SUFFIXES):
        raise DataError(
            f"reading {path}: its form is unknown; known suffixes: {', '.join(_SUFFIXES)}"
        )
    return path


def _lines(path: Path) -> Iterator[str]:
    """Yield a text file's lines, so that a wrong byte can be placed."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"reading {path}, line {number}: it is not UTF-8 text (byte {error.start + 1} of the "
                    f"line is 0x{raw[error.start]:02x}); save the file as UTF-8"
                ) from error


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield _object(_parsed(line, f"{path}, line {number}"), path, number)


def _json(path: Path) -> list[Row]:
    found = _parsed("".join(_lines(path)) or "[]", str(path))
    if not isinstance(found, list):
        raise DataError(
            f"reading {path}: a .json file must hold one array of objects; met {type(found).__name__}. "
            "One object a line is a .jsonl file"
        )
    return [_object(item, path, number) for number, item in enumerate(found, 1)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"reading {where}: it is not JSON ({error}); correct it") from error


def _object(value: Any, path: Path, number: int) -> Row:
    row = Row(value if isinstance(value, dict) else {}, path, number)
    if not isinstance(value, dict):
        raise DataError(f"reading {row.where}: it must be an object; met {type(value).__name__}")
    return row


def _csv(path: Path, headless: tuple[str, ...], marks: tuple[str, ...]) -> Iterator[Row]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        first = next(reader, [])
        header = [name.strip() for name in first]
        if headless and not set(marks) & set(header):
            header = list(headless[: len(first)])
            yield from _csv_row(first, header, path, reader.line_num)
        for cells in reader:
            yield from _csv_row(cells, header, path, reader.line_num)
    except csv.Error as error:
        raise DataError(f"reading {path}, line {reader.line_num}: {error}; correct it") from error


def _csv_row(cells: list[str], header: list[str], path: Path, line: int) -> Iterator[Row]:
    if not cells:
        return
    if len(cells) != len(header):
        raise DataError(
            f"reading {path}, line {line}: it has {len(cells)} fields where the columns are "
            f"{', '.join(header)}; quote fields that hold commas or line breaks"
        )
    yield Row(dict(zip(header, cells, strict=True)), path, line)


def _parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"reading {path}: it is not a sound Parquet file ({error})") from error
    return [Row(values, path, number) for number, values in enumerate(found, 1)]
