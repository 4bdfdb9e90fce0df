"""The model hub: one short probe, then files by commit, each checked against the hub's own hash."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from backfire.assets.origin import RepoKind, matches
from backfire.errors import DataError, PrerequisiteError
from backfire.progress import Progress, Task
from backfire.store import file_sha256

__all__ = ["Client", "HubClient", "HubFile", "Listing", "Snapshot", "hub_files", "hub_problem"]

PROBE_SECONDS = 3.0
"""How long the hub has to answer the probe. Ours: a working hub answers in well under a second."""


_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the hub describes it."""

    path: str
    size: int
    sha256: str | None = None
    """Of files in large-file storage."""
    git_sha1: str | None = None
    """Git's object name, of the other files."""

    def is_in(self, path: Path) -> bool:
        """Return whether `path` holds exactly this content."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return file_sha256(path) == self.sha256
        if self.git_sha1 is None:
            return True
        content = path.read_bytes()
        head = b"blob %d\0" % len(content)
        return hashlib.sha1(head + content, usedforsecurity=False).hexdigest() == self.git_sha1


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: Mapping[str, HubFile]


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit on disk."""

    folder: Path
    commit: str
    checked: bool
    """Whether every file's hash was compared with the hub's; not when the hub cannot be asked."""


class Client(Protocol):
    """What is asked of the hub."""

    def problem(self) -> str:
        """Return why the hub cannot be used now; empty when it can."""
        ...

    def cached(
        self, repo: str, kind: RepoKind, revision: str | None, patterns: Sequence[str]
    ) -> Path | None:
        """Return the snapshot that the hub's own cache holds, perhaps without some files."""
        ...

    def listing(self, repo: str, kind: RepoKind, revision: str | None) -> Listing:
        """Return the files at a revision (None: the newest)."""
        ...

    def download(
        self, repo: str, kind: RepoKind, revision: str | None, path: str, task: Task, *, again: bool
    ) -> Path:
        """Return a file in the hub's own cache, downloaded unless it is there (`again`: anew)."""
        ...


def hub_files(
    client: Client,
    repo: str,
    kind: RepoKind,
    revision: str | None,
    patterns: Sequence[str],
    optional: Sequence[str],
    progress: Progress,
) -> Snapshot:
    """Return a snapshot of a repository that has the matching files.

    A complete snapshot in the hub's own cache is used when the hub cannot be reached.

    Raises:
        PrerequisiteError: when the hub cannot be reached and its cache has no complete snapshot.
        DataError: when the repository lacks a file, or a file stays damaged.
    """
    problem = client.problem()
    if problem:
        folder = client.cached(repo, kind, revision, patterns)
        if folder is not None and all(any(folder.glob(pattern)) for pattern in patterns):
            return Snapshot(folder, folder.name, checked=False)
        raise PrerequisiteError(f"{problem}, and its local cache has no complete snapshot")
    listing = client.listing(repo, kind, revision)
    if revision is not None and _COMMIT.fullmatch(revision) and listing.commit != revision:
        raise DataError(f"the hub answered with commit {listing.commit}, not the one asked for")
    lacking = [p for p in patterns if not any(matches(path, [p]) for path in listing.files)]
    if lacking:
        raise DataError(f"the repository has no file {', '.join(lacking)}")
    wanted = [f for f in listing.files.values() if matches(f.path, (*patterns, *optional))]
    total = round(sum(file.size for file in wanted) / 1e6, 1)
    with progress.task(f"download {repo}", total=total, unit="MB") as task:
        folders = {_checked(client, repo, kind, revision, file, task) for file in wanted}
    if len(folders) != 1:
        raise DataError("the repository changed during the download; run the command again")
    return Snapshot(folders.pop(), listing.commit, checked=True)


def _checked(
    client: Client, repo: str, kind: RepoKind, revision: str | None, file: HubFile, task: Task
) -> Path:
    """Return the snapshot folder that holds the file, undamaged; one damaged copy is replaced."""
    for again in (False, True):
        path = client.download(repo, kind, revision, file.path, task, again=again)
        if file.is_in(path):
            return path.parents[file.path.count("/")]
    raise DataError(f"{file.path} arrived damaged twice: its hash is not the one the hub gives")


@lru_cache
def hub_problem(endpoint: str, offline: bool) -> str:
    """Return why the hub cannot be used; empty when it can. Remembered for the process."""
    if offline:
        return "HF_HUB_OFFLINE is set"
    # Imported before the clock starts; on a busy machine the import alone can take seconds.
    from huggingface_hub import errors
    from huggingface_hub.utils import get_session

    answer = [f"no answer from {endpoint} within {PROBE_SECONDS:g} s"]

    def probe() -> None:
        try:
            address = f"{endpoint}/api/models?limit=1"
            status = int(get_session().get(address, timeout=PROBE_SECONDS).status_code)
        except (errors.HTTPError, OSError) as error:
            answer[0] = f"{endpoint} is not reachable ({error})"
        else:
            refused = status in (403, 407) or status >= 500
            answer[0] = f"{endpoint} answered with status {status}" if refused else ""

    # A thread, because a name look-up that hangs obeys no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    return answer[0]


class HubClient:
    """The hub as `huggingface_hub` sees it: endpoint, token and cache are the user's own."""

    def problem(self) -> str:
        """Return why the hub cannot be used now; empty when it can."""
        true = {"1", "ON", "YES", "TRUE"}
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        offline = any(os.environ.get(name, "").upper() in true for name in names)
        return hub_problem(
            os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"), offline
        )

    def cached(
        self, repo: str, kind: RepoKind, revision: str | None, patterns: Sequence[str]
    ) -> Path | None:
        """Return the snapshot that the hub's own cache holds, perhaps without some files."""
        from huggingface_hub import errors, snapshot_download

        try:
            return Path(
                snapshot_download(
                    repo,
                    repo_type=kind,
                    revision=revision,
                    allow_patterns=list(patterns),
                    local_files_only=True,
                )
            )
        except (errors.HTTPError, OSError, ValueError):
            return None

    def listing(self, repo: str, kind: RepoKind, revision: str | None) -> Listing:
        """Return the files at a revision (None: the newest)."""
        from huggingface_hub import HfApi

        with _explained(repo):
            info: Any = HfApi().repo_info(
                repo, repo_type=kind, revision=revision, files_metadata=True, timeout=10
            )
        files = {
            s.rfilename: HubFile(
                s.rfilename,
                s.size or 0,
                s.lfs.sha256 if s.lfs else None,
                None if s.lfs else s.blob_id,
            )
            for s in info.siblings
        }
        return Listing(str(info.sha), files)

    def download(
        self, repo: str, kind: RepoKind, revision: str | None, path: str, task: Task, *, again: bool
    ) -> Path:
        """Return a file in the hub's own cache, downloaded unless it is there (`again`: anew)."""
        from huggingface_hub import hf_hub_download

        with _explained(repo):
            return Path(
                hf_hub_download(
                    repo,
                    path,
                    repo_type=kind,
                    revision=revision,
                    force_download=again,
                    tqdm_class=_bar(task),
                )
            )


def _bar(task: Task) -> Any:
    """Return a bar class that shows nothing itself and moves `task`, in megabytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            task.advance((n or 0) / 1e6)
            return None

    return Bar


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub library's errors into one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise PrerequisiteError(
            f"{repo} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{repo} has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"the hub has no {repo}, or it is private (then log in with `hf auth login`)"
        ) from None
    except (errors.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise PrerequisiteError(f"downloading {repo} failed: {reason}") from error
