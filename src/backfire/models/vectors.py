"""A store of vectors by content: one append-only file, shared by processes, safe against crashes.

    header  magic, dimensions, CRC-32 of both
    record  SHA-256 of the text, vector (float32), CRC-32 of both
    record  ...

Records have one size, so what a crash left half written is what goes beyond a multiple of it; the next
writer cuts it off. A record whose checksum fails counts as absent. Losing the file costs only time.

>>> store = VectorStore(cache_dir() / "embeddings" / "all-minilm-l6-v2.vectors")  # doctest: +SKIP
>>> store.put(store.digests(["a text"]), vectors)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

__all__ = ["VectorStore"]

_HEADER = struct.Struct("<12sII")
_MAGIC = b"bf-vectors-1"
_CHUNK = 8192


class VectorStore:
    """Vectors of one encoder, by the SHA-256 of their texts."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is created by the first `put`."""
        self.path = path
        self._rows: dict[bytes, int] = {}
        self._seen = (0, 0)  # inode and number of records the rows were read from

    @staticmethod
    def digests(texts: Iterable[str]) -> list[bytes]:
        """Return the keys of texts."""
        return [hashlib.sha256(text.encode()).digest() for text in texts]

    def get(self, digests: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the vectors that are there and sound, by digest."""
        found: dict[bytes, np.ndarray] = {}
        dim = self._dim()
        if dim is None:
            return found
        form = _record(dim)
        with self.path.open("rb") as file:
            self._index(file, form)
            for digest in digests:
                if (row := self._rows.get(digest)) is not None:
                    file.seek(_HEADER.size + row * form.itemsize)
                    raw = file.read(form.itemsize)
                    if raw[:32] == digest and _sound(raw):
                        found[digest] = np.frombuffer(raw, form)[0]["vector"].copy()
        return found

    def put(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Append vectors (digests, dimensions); on return they are in the file.

        A file of another form or dimension is replaced.
        """
        num, dim = vectors.shape
        records = np.zeros(num, _record(dim))
        records["digest"] = np.frombuffer(b"".join(digests), np.uint8).reshape(num, 32)
        records["vector"] = vectors
        records["check"] = [zlib.crc32(record.tobytes()[:-4]) for record in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if self._dim() != dim:
                self.path.unlink(missing_ok=True)
            with self.path.open("ab") as file:
                size = file.tell()
                if size == 0:
                    file.write(_HEADER.pack(_MAGIC, dim, _header_check(dim)))
                elif tail := (size - _HEADER.size) % records.itemsize:
                    file.truncate(size - tail)
                file.write(records.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def _dim(self) -> int | None:
        """Return the file's number of dimensions; None without a sound file."""
        try:
            with self.path.open("rb") as file:
                magic, dim, check = _HEADER.unpack(file.read(_HEADER.size))
        except (FileNotFoundError, struct.error):
            return None
        return int(dim) if magic == _MAGIC and check == _header_check(dim) else None

    def _index(self, file: BinaryIO, form: np.dtype[np.void]) -> None:
        """Note where records are that were appended since, here or by another process."""
        status = os.fstat(file.fileno())
        num = (status.st_size - _HEADER.size) // form.itemsize
        inode, known = self._seen
        if inode != status.st_ino or num < known:
            self._rows, known = {}, 0
        file.seek(_HEADER.size + known * form.itemsize)
        for start in range(known, num, _CHUNK):
            records = np.fromfile(file, form, min(_CHUNK, num - start))
            keys = records["digest"].tobytes()
            for i in range(len(records)):
                self._rows[keys[32 * i : 32 * i + 32]] = start + i
        self._seen = (status.st_ino, num)


def _header_check(dim: int) -> int:
    return zlib.crc32(_MAGIC + dim.to_bytes(4, "little"))


def _record(dim: int) -> np.dtype[np.void]:
    return np.dtype([("digest", "u1", 32), ("vector", "<f4", dim), ("check", "<u4")])


def _sound(raw: bytes) -> bool:
    return len(raw) > 4 and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
