"""How the command line meets the terminal: errors to exit codes, progress, output."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from backfire.errors import BackfireError
from backfire.progress import Progress, Style, make

__all__ = ["emit", "register", "shown", "stop"]

_Verb = Callable[..., None]


def register(app: typer.Typer) -> Callable[[_Verb], _Verb]:
    """Return a decorator that makes a function a verb of `app`.

    What the user can mend becomes a message and an exit code; any other exception keeps its traceback.
    """

    def verb(function: _Verb) -> _Verb:
        @functools.wraps(function)
        def guarded(*args: Any, **words: Any) -> None:
            try:
                function(*args, **words)
            except BackfireError as error:
                stop(f"error: {error}", error.exit_code)
            except KeyboardInterrupt:
                stop(
                    "interrupted; everything finished is kept. The same command goes on where it "
                    "stopped",
                    130,
                )

        app.command(function.__name__.rstrip("_").replace("_", "-"))(guarded)
        return guarded

    return verb


def stop(text: str, code: int) -> NoReturn:
    """End the command with a message on standard error, in red on a terminal."""
    typer.secho(text, err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise typer.Exit(code)


@contextmanager
def shown(style: Style) -> Iterator[Progress]:
    """Give a progress display for the body, and let a polite kill end it like Ctrl-C."""
    progress = make(style)
    # Not the handler of Ctrl-C, which a shell turns off for jobs in the background.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield progress
    except BackfireError:
        raise
    except Exception:
        progress.close()
        if progress.log is not None:
            typer.echo(f"unexpected error; the events before it are in {progress.log}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.close()


def emit(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a result on standard output, as JSON or as text."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text(value))
