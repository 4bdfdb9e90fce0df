"""What the user sees while work goes on: one contract, four ways to show it.

Library code never prints. It opens a task, advances it, and lets the implementation decide:

>>> progress = Silent()
>>> with progress.task("evaluate", total=3, unit="items") as task:
...     for _ in range(3):
...         task.advance()

Everything goes to standard error (results alone go to standard output), and every event is also
kept in the run's `events.jsonl` once `record_to` names it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar

__all__ = ["Plain", "Progress", "Rich", "Silent", "Style", "Task", "duration", "make"]

Style = Literal["auto", "rich", "plain", "none"]


def duration(seconds: float) -> str:
    """Return a span as people say it: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


class Task:
    """One bar: how far, how fast, how long yet."""

    def __init__(
        self, owner: Progress, label: str, total: float | None, unit: str, steady: bool
    ) -> None:
        """Open a task of `total` units (None: unknown), see `Progress.task`."""
        self.label = label
        self._steady = steady
        self.total = total
        self.unit = unit
        self.done = 0.0
        self.note = ""
        self.started = time.monotonic()
        self._owner = owner
        self._skipped = 0.0

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add `amount` units; `note` replaces the short text shown beside the bar."""
        self.done += amount
        if note:
            self.note = note
        self._owner._changed(self)

    def skip(self, amount: float) -> None:
        """Count `amount` units as done before this task began (resumed work), for honest rates."""
        self.done += amount
        self._skipped += amount
        self._owner._changed(self)

    @property
    def seconds_left(self) -> float | None:
        """Return the time left at the rate so far; None where there is no rate to go by."""
        worked = self.done - self._skipped
        if not self._steady or not self.total or worked <= 0:
            return None
        return max(0.0, (self.total - self.done) * (time.monotonic() - self.started) / worked)


class Progress:
    """The contract, and the silent implementation's behaviour: events are kept, nothing is shown."""

    def __init__(self) -> None:
        self._events: Path | None = None

    def record_to(self, path: Path) -> None:
        """Append every event to `path` as JSON lines from now on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._events = path

    @property
    def log(self) -> Path | None:
        """Return the file that keeps the events, if there is one."""
        return self._events

    @contextmanager
    def task(
        self, label: str, total: float | None = None, unit: str = "", *, steady: bool = True
    ) -> Iterator[Task]:
        """Open a task for the body of a `with`; it is closed however the body ends.

        Args:
            label: What is being done.
            total: How much there is to do; None: unknown.
            unit: Of what, in the plural.
            steady: Whether the units take about equally long; if not, no time left is told.
        """
        task = Task(self, label, total, unit, steady)
        self._event("started", label=label, total=total, unit=unit)
        self._opened(task)
        try:
            yield task
        except BaseException as error:
            self._event("failed", label=label, done=task.done, error=type(error).__name__)
            raise
        else:
            seconds = round(time.monotonic() - task.started, 3)
            self._event("finished", label=label, done=task.done, seconds=seconds, note=task.note)
        finally:
            self._closed(task)

    def say(self, text: str) -> None:
        """Show one line of news."""
        self._event("said", text=text)
        self._line(text)

    def warn(self, text: str) -> None:
        """Show one line the user should act on."""
        self._event("warned", text=text)
        self._line(f"warning: {text}")

    def close(self) -> None:
        """Release the terminal."""

    def _event(self, kind: str, **fields: Any) -> None:
        if self._events is not None:
            row = {"time": round(time.time(), 3), "event": kind, **fields}
            with self._events.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _opened(self, task: Task) -> None: ...

    def _changed(self, task: Task) -> None: ...

    def _closed(self, task: Task) -> None: ...

    def _line(self, text: str) -> None: ...


class Silent(Progress):
    """Shows nothing; for tests and for `--progress none`."""


class Plain(Progress):
    """One line now and then, for logs and pipes."""

    def __init__(self, every_seconds: float = 10.0, stream: TextIO | None = None) -> None:
        """Print at most one line a task every `every_seconds` seconds."""
        super().__init__()
        self._every = every_seconds
        self._stream = stream or sys.stderr
        self._last: dict[int, float] = {}

    def _opened(self, task: Task) -> None:
        self._last[id(task)] = time.monotonic()

    def _changed(self, task: Task) -> None:
        now = time.monotonic()
        if now - self._last.get(id(task), now) >= self._every:
            self._last[id(task)] = now
            self._line(_describe(task))

    def _closed(self, task: Task) -> None:
        self._last.pop(id(task), None)
        spent = time.monotonic() - task.started
        if spent >= 2:
            self._line(f"{task.label}: {task.done:g} {task.unit} in {duration(spent)} {task.note}")

    def _line(self, text: str) -> None:
        self._stream.write(text.rstrip() + "\n")
        self._stream.flush()


class Rich(Progress):
    """Live bars on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar: RichBar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", style="cyan", markup=False),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._ids: dict[int, Any] = {}

    def close(self) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def _opened(self, task: Task) -> None:
        self._ids[id(task)] = self._bar.add_task(task.label, total=task.total, note="", left="")

    def _changed(self, task: Task) -> None:
        left = task.seconds_left
        self._bar.update(
            self._ids[id(task)],
            completed=task.done,
            note=task.note,
            left="" if left is None else f"{duration(left)} left",
        )

    def _closed(self, task: Task) -> None:
        from rich.text import Text

        self._bar.remove_task(self._ids.pop(id(task)))
        spent = time.monotonic() - task.started
        if spent >= 2:
            line = Text.assemble(
                ("✓", "green"), f" {task.label} ", (f"{duration(spent)} {task.note}", "dim")
            )
            self._console.print(line)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def make(style: Style) -> Progress:
    """Return the implementation for `style`; `auto` is live on a terminal and plain elsewhere."""
    if style == "none":
        return Silent()
    if style == "rich" or (style == "auto" and sys.stderr.isatty()):
        return Rich()
    return Plain()


def _describe(task: Task) -> str:
    part = f"{task.done:g}" if task.total is None else f"{task.done:g}/{task.total:g}"
    left = task.seconds_left
    tail = "" if left is None else f", about {duration(left)} left"
    return f"{task.label}: {part} {task.unit}{tail} {task.note}"
