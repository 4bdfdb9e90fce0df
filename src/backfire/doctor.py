"""What this machine has and lacks, as a checklist."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backfire.provenance import device_facts, git_state, host_facts, versions
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
    from backfire.assets import status

    assets = status()
    return {
        "versions": versions(_PACKAGES),
        "source": git_state(),
        "host": host_facts(),
        "device": device_facts("auto"),
        "hub": assets.hub or "reachable",
        "cache": {"folder": str(assets.cache), "free_bytes": _free(assets.cache)},
        "assets": [asdict(asset) for asset in assets.assets],
        "free_bytes_here": _free(Path.cwd()),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def doctor_page(record: dict[str, Any]) -> str:
    """Return the record as a checklist."""
    host, device, cache = record["host"], record["device"], record["cache"]
    absent = [name for name, found in record["versions"].items() if found == "absent"]
    cached = [a["name"] for a in record["assets"] if not a["problem"]]
    damaged = [f"{a['name']} ({a['problem']})" for a in record["assets"]
               if a["problem"] not in ("", "absent")]  # fmt: skip
    rows = [[name, found] for name, found in record["versions"].items() if found != "absent"]
    rows += [
        ["not installed", ", ".join(absent) or "nothing"],
        ["system", f"{host['system']}, {host['processor']}, {host['cores']} cores"],
        ["memory", size(host["memory_bytes"])],
        ["device", f"{device['name']} ({device['device']}, {device['threads']} threads)"],
        ["model hub", record["hub"]],
        ["cache", f"{cache['folder']}, {size(cache['free_bytes'])} free"],
        ["cached assets", ", ".join(cached) or "none"],
        ["unusable assets", ", ".join(damaged) or "none"],
        ["free here", size(record["free_bytes_here"])],
        *([name, value] for name, value in record["environment"].items()),
    ]
    return table(["what", "found"], rows)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
