"""The search over an attacker's settings: `backfire search`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backfire.errors import PrerequisiteError

if TYPE_CHECKING:
    from backfire.config import Experiment
    from backfire.pipeline import Outcome
    from backfire.progress import Progress

__all__ = ["search"]


def search(
    experiment: Experiment, out: Path | None, *, device: str, progress: Progress, passed: Any = None
) -> Outcome:
    """Search, and run what was found with the rest; see `backfire.search.run.search`.

    Raises:
        PrerequisiteError: when Optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise PrerequisiteError(
            "searching over an attacker's settings: Optuna is not installed; "
            "`pip install 'backfire[search]'` brings it"
        )
    from backfire.search.run import search as work

    return work(experiment, out, device=device, progress=progress, passed=passed)
