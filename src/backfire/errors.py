"""Errors, split by who can mend them.

    BackfireError            the base; never raised itself
    ├── ConfigError          the run file or a command's arguments           exit 2
    ├── PrerequisiteError    the machine: a missing extra, no network, disk   exit 3
    ├── DataError            a data source                                    exit 1
    ├── CheckpointError      a model folder or a stored artifact              exit 1
    ├── TrainingError        a training run that cannot go on                 exit 1
    │   ├── DivergedError    its loss, gradient or weights are not finite     exit 1
    │   └── NothingFoundError  what an attack looks for is not there          exit 1
    └── JudgeError           a judge that cannot be used at all               exit 1

A message says what was being done, what was met, what is allowed and what to do next. These errors
are printed without a traceback; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "BackfireError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "JudgeError",
    "NothingFoundError",
    "PrerequisiteError",
    "TrainingError",
    "near_miss",
]


class BackfireError(Exception):
    """Base of every error a user can mend."""

    exit_code = 1


class ConfigError(BackfireError):
    """The run file or a command's arguments are wrong."""

    exit_code = 2


class PrerequisiteError(BackfireError):
    """The machine lacks something: a package, a network, a device, disk space."""

    exit_code = 3


class DataError(BackfireError):
    """A data source is missing, unreadable, empty or of another shape than promised."""


class CheckpointError(BackfireError):
    """A model folder or a stored artifact cannot be used."""


class TrainingError(BackfireError):
    """A training run cannot go on; the last good state is kept."""

    outcome: ClassVar[str] = "failed"
    """The word for the cell of a grid that came to this."""


class DivergedError(TrainingError):
    """Loss, gradient, weights or logits are not finite: of an attack, a result."""

    outcome = "diverged"


class NothingFoundError(TrainingError):
    """What an attack looks for in a model is not there, which is a result."""

    outcome = "found nothing"


class JudgeError(BackfireError):
    """A judge cannot be used at all (a single failed judgement is a row, not an error)."""


def near_miss(what: str, met: str, allowed: Iterable[str]) -> str:
    """Say that a name is unknown, what may have been meant, and what exists.

    >>> near_miss("defense", "sd", ["none", "sdd"])
    "unknown defense 'sd'; did you mean 'sdd'? known: none, sdd"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(met, names, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return f"unknown {what} {met!r};{hint} known: {', '.join(names)}"
