"""What an endpoint has answered so far, on disk as it comes, so that nothing is paid for twice.

One JSON line a reply, in the cache: `judgements/<model>-<key>.jsonl`, one file an endpoint and model.
A line is found by the digest of the request's body, so any change of what is asked is another line, and
the same question from another cell or another run is answered from here. The file holds no question.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TextIO

from backfire.assets.cache import cache_dir
from backfire.errors import PrerequisiteError
from backfire.judges.transport import Reply
from backfire.progress import Progress
from backfire.store import content_key, disk_guard

__all__ = ["Journal"]


class Journal:
    """The replies of one model at one address."""

    def __init__(self, base_url: str, model: str) -> None:
        """Name the file; nothing is read yet."""
        slug = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.")[:40]
        self.path = cache_dir() / "judgements" / f"{slug}-{content_key(base_url, model)}.jsonl"
        self._replies: dict[str, Reply] = {}
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Journal]:
        """Read what is there and hold the file for this process, so that two never ask the same.

        Raises:
            PrerequisiteError: when the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PrerequisiteError(
                f"keeping a judge's replies: the folder {self.path.parent} cannot be written ({error}); "
                "name another cache with the environment variable BACKFIRE_CACHE"
            ) from error
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.say(f"another process is asking the same judge; waiting for it ({self.path})")
            lock.acquire()
        try:
            whole = self._read()
            self.path.touch(mode=0o600)  # replies may quote what they judge
            with self.path.open("a", encoding="utf-8") as self._file:
                if not whole:
                    self._file.write("\n")
                yield self
        finally:
            self._file = None
            lock.release()

    def _read(self) -> bool:
        """Take in every readable line; return whether the file ends with a whole one."""
        self._replies = {}
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return True
        for line in text.splitlines():
            try:
                row = json.loads(line)
                self._replies[row["key"]] = Reply(**row["reply"])
            except (ValueError, KeyError, TypeError):
                continue  # a line a crash has cut; its question is asked again
        return not text or text.endswith("\n")

    def __len__(self) -> int:
        """Return how many replies are kept."""
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, if there is one."""
        return self._replies.get(key)

    @property
    def model(self) -> str:
        """Return the model that gave the replies, by its own account; empty when none says."""
        return next((reply.model for reply in self._replies.values() if reply.model), "")

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is on disk when this returns. Safe from several threads."""
        row = {"key": key, "time": round(time.time(), 3), "reply": asdict(reply)}
        with self._lock, disk_guard(self.path):
            if self._file is None:
                raise ValueError("the journal is not open")
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            self._replies[key] = reply
