"""Results on disk: content keys, stages whose marker is written last, tables in and out.

    runs/<name>-<digest>/
    ├── manifest.json  experiment.yaml  events.jsonl
    ├── stages/<kind>-<key>/     one folder a stage; `done.json` is written last
    ├── tables/*.parquet
    └── report/

A path's existence means nothing: a stage is done when its `done.json` is there and names files of the
recorded sizes. A changed setting gives another key and so another folder, never a stale hit.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from backfire.errors import CheckpointError, PrerequisiteError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "SCHEMA_VERSION",
    "StageFolder",
    "content_key",
    "disk_guard",
    "file_sha256",
    "folder_key",
    "read_json",
    "read_table",
    "replace_folder",
    "write_json",
    "write_table",
    "write_text",
]

SCHEMA_VERSION = 1
"""Version of the run folder's layout. Readers refuse a newer one."""

_Row = TypeVar("_Row")


def content_key(*parts: Any) -> str:
    """Return 16 hex digits that are equal exactly when the parts are; key order does not matter."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_key(folder: Path) -> str:
    """Return the content key of a folder's files: names, and the SHA-256 of each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return content_key([[str(f.relative_to(folder)), file_sha256(f)] for f in files])


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        kind = type(value)
        later = {name for base in kind.__mro__ for name in vars(base).get("later", ())}
        return {
            "version": getattr(kind, "version", None),
            **{
                name: _plain(getattr(value, name))
                for name, about in kind.model_fields.items()
                if name not in later or getattr(value, name) != about.default
            },
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        later = set(getattr(value, "later", ()))
        return {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name not in later or getattr(value, f.name) != f.default
        }
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    return value


# ---------------------------------------------------------------------------------------- atomic files


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_guard(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(
        path, json.dumps(_plain(value), indent=1, ensure_ascii=False, sort_keys=False) + "\n"
    )


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        CheckpointError: when the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"reading {path}: there is no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"reading {path}: it is not valid JSON ({error}); restore it"
        ) from error


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes `target`'s place, else nothing changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_guard(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            if target.exists():
                old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old"))
                target.replace(old / "old")
                temporary.replace(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def disk_guard(path: Path) -> Iterator[None]:
    """Say it plainly when the disk fills up in the body, whichever library was writing.

    Raises:
        PrerequisiteError: in place of that library's own error.
    """
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "os error 28" not in str(
            error
        ):  # libraries in Rust have errors of their own
            raise
        raise PrerequisiteError(
            f"writing {path}: the disk is full. Everything finished is kept; free some space, or move "
            "the folder and name it with --out, and run the command again"
        ) from error


# ---------------------------------------------------------------------------------------------- tables


def write_table(path: Path, rows: Sequence[Any], row_type: type | None = None) -> None:
    """Write records as one Parquet file (zstd), whole or not at all.

    Args:
        path: Target file.
        rows: Instances of one dataclass of `backfire.records`, or dictionaries with equal keys.
        row_type: The dataclass; needed only to give an empty table its columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rows and dataclasses.is_dataclass(rows[0]):
        row_type = type(rows[0])
    plain = [{k: _cell(v) for k, v in _plain(row).items()} for row in rows]
    schema = _schema(row_type) if row_type is not None else None
    table = pa.Table.from_pylist(plain, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_guard(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_table(path: Path, row_type: Callable[..., _Row]) -> list[_Row]:
    """Return a Parquet file's rows as records of `row_type` (a dataclass, or `dict`).

    Raises:
        CheckpointError: when the file is missing, damaged or of another shape.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise CheckpointError(
            f"reading table {path}: {error}. Delete its stage folder and run the experiment again"
        ) from error
    make = row_type  # `is_dataclass` would narrow its type away
    if not dataclasses.is_dataclass(row_type):
        return [row_type(**row) for row in rows]
    tuples = {f.name for f in dataclasses.fields(row_type) if "tuple" in str(f.type)}
    maps = {f.name for f in dataclasses.fields(row_type) if str(f.type).startswith("dict")}
    try:
        return [
            make(
                **{
                    k: tuple(v or ()) if k in tuples else json.loads(v) if k in maps else v
                    for k, v in row.items()
                }
            )
            for row in rows
        ]
    except TypeError as error:
        raise CheckpointError(
            f"reading table {path}: it does not hold {row_type.__name__} rows ({error}). "
            "It was written by another version; run the experiment again"
        ) from error


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def _schema(row_type: type) -> pa.Schema:
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "tuple[str, ...]": pa.list_(pa.string()),
        "tuple[float, ...]": pa.list_(pa.float64()),
    }
    fields = []
    for item in dataclasses.fields(row_type):
        name = str(item.type).removesuffix(" | None")
        fields.append(pa.field(item.name, kinds.get(name, pa.string())))
    return pa.schema(fields)


# ---------------------------------------------------------------------------------------------- stages


class StageFolder:
    """One stage's folder: work in it, then `finish`; nobody believes it before that.

    Two processes may want the same stage: the second waits for the first and finds it done.
    """

    def __init__(self, root: Path, kind: str, key: str) -> None:
        """Name the folder `<root>/<kind>-<key>`; nothing is created yet."""
        self.path = root / f"{kind}-{key}"
        self.kind = kind
        self.key = key

    @property
    def marker(self) -> Path:
        """Return the file whose presence means complete."""
        return self.path / "done.json"

    def done(self) -> dict[str, Any] | None:
        """Return the marker's content, or None unless the stage is complete and undamaged."""
        try:
            found = json.loads(self.marker.read_text(encoding="utf-8"))
            sizes = found["files"]
            whole = all((self.path / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return dict(found) if whole else None

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Hold the stage's lock and give its folder, keeping what an interrupted run left there."""
        from filelock import FileLock

        with disk_guard(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.parent / f".{self.path.name}.lock"):
            yield self.path

    def finish(self, started: float, **facts: Any) -> dict[str, Any]:
        """Write the marker: every file's size, how long it took (from `started`), and `facts`."""
        files = {
            str(path.relative_to(self.path)): path.stat().st_size
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
            and path != self.marker
            and "state" not in path.relative_to(self.path).parts
        }
        seconds = round(time.time() - started, 3)
        done = {"kind": self.kind, "key": self.key, "seconds": seconds, **facts, "files": files}
        write_json(self.marker, done)
        return done
