"""What a result depends on besides its settings: versions, source state, device, threads, memory.

Facts about the machine, never about the person: no host name, no user, no path.

>>> sorted(versions(("pydantic",)))
['backfire', 'pydantic', 'python']
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "EVALUATION_LIBRARIES",
    "TRAINING_LIBRARIES",
    "device_facts",
    "git_state",
    "host_facts",
    "versions",
]

TRAINING_LIBRARIES = ("torch", "transformers", "accelerate", "peft")
"""Packages whose version can change a trained weight."""

EVALUATION_LIBRARIES = ("torch", "transformers", "lm-eval", "sentence-transformers")
"""Packages whose version can change a measured row."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of backfire, Python and the packages; `absent` for what is not installed."""
    found = {"backfire": "", "python": platform.python_version()}
    for name in ("backfire", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Return commit and dirtiness of the source tree the package runs from; empty if it is installed.

    Args:
        folder: A folder of the tree; by default the package's own.
    """
    own = Path(__file__).parent
    folder = folder or own
    git = shutil.which("git")
    if git is None:
        return {}

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - git by its full path, fixed words
                [git, "-C", str(folder), *words],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package inside another project's repository (in a .venv, say) is not that project's version.
    if folder == own and ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}
    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain", "--untracked-files=no")
    return {} if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def host_facts() -> dict[str, Any]:
    """Return processor, cores, memory (bytes) and system, cheaply and without torch."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
    }


def device_facts(device: str) -> dict[str, Any]:
    """Return what the work runs on: the device's name, its memory (bytes), threads, bf16 support.

    Args:
        device: As given to `--device`; `auto` is resolved.
    """
    import torch

    from backfire.models.load import pick_device

    chosen = pick_device(device)
    facts: dict[str, Any] = {"device": chosen.type, "threads": torch.get_num_threads()}
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        facts |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "bf16": torch.cuda.is_bf16_supported(),
            "cuda": torch.version.cuda,
        }
    else:
        facts["name"] = _processor() if chosen.type == "cpu" else chosen.type
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
