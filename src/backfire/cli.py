"""The command line: each verb parses its words and calls one function.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
2 a mistake in a file or in the command, 3 the machine lacks something, 130 interrupted.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from backfire.errors import BackfireError, ConfigError
from backfire.progress import Progress, Style, make

if TYPE_CHECKING:
    from backfire.config import Experiment

__all__ = ["app", "main"]

app = typer.Typer(
    name="backfire",
    help="Harden open-weight language models against malicious fine-tuning, attack the result "
    "honestly, and say whether an attacker gets a model that is both harmful and useful.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFile = Annotated[Path, typer.Argument(help="A run file (YAML).")]
Model = Annotated[str, typer.Argument(help="A model folder, an asset name or a hub id.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder [runs/<name>-<digest>].")]
NewFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Data = Annotated[
    str | None, typer.Option("--data", help="Rows to train on: a file, or a source's name.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Show = Annotated[Style, typer.Option("--progress", help="How to show progress.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw earlier results away first.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Register a verb, and turn what it raises into a message and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **words: Any) -> None:
        try:
            function(*args, **words)
        except BackfireError as error:
            _stop(f"error: {error}", error.exit_code)
        except KeyboardInterrupt:
            _stop(
                "interrupted; everything finished is kept. The same command continues where it stopped",
                130,
            )
        except BrokenPipeError:
            # The reader (`head`, say) has seen enough.
            sys.stderr.close()
            raise typer.Exit(0) from None

    app.command(function.__name__.rstrip("_"))(guarded)
    return guarded


def _stop(text: str, code: int) -> NoReturn:
    typer.secho(text, err=True, fg=typer.colors.RED if sys.stderr.isatty() else None)
    raise typer.Exit(code)


@contextmanager
def _shown(style: Style) -> Iterator[Progress]:
    """Give a progress display, and let a polite kill end like Ctrl-C."""
    progress = make(style)
    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        yield progress
    except BackfireError:
        raise
    except Exception:
        progress.close()
        if progress.log is not None:
            typer.echo(f"an unexpected error; the events before it are in {progress.log}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.close()


def _print(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False) if as_json else text(value))


@verb
def demo(
    out: Out = None,
    assign: Set = None,
    fresh: Fresh = False,
    device: Device = "auto",
    progress: Show = "auto",
) -> None:
    """Run the shipped experiment on a real small model: harden, attack, measure, report."""
    from backfire.config import shipped

    _run(shipped("demo", assign or []), out, fresh, device, progress, {"set": assign}, False)


@verb
def run(
    file: RunFile,
    out: Out = None,
    assign: Set = None,
    fresh: Fresh = False,
    device: Device = "auto",
    progress: Show = "auto",
    as_json: Json = False,
) -> None:
    """Run an experiment; what an earlier run finished is used again."""
    from backfire.config import load

    experiment = load(file, assign or [])
    passed = {"file": file.read_text(encoding="utf-8"), "set": assign}
    _run(experiment, out, fresh, device, progress, passed, as_json)


def _run(
    experiment: Experiment, out: Path | None, fresh: bool, device: str, style: Style, passed: Any,
    as_json: bool,
) -> None:  # fmt: skip
    from backfire.pages import outcome_page, outcome_record
    from backfire.pipeline import run as run_experiment

    with _shown(style) as progress:
        outcome = run_experiment(
            experiment, out, fresh=fresh, device=device, progress=progress, passed=passed
        )
    typer.echo(json.dumps(outcome_record(outcome)) if as_json else outcome_page(outcome))
    if outcome.failed:
        _stop("error: some stages failed:\n" + "\n".join(f"  {f}" for f in outcome.failed), 1)


@verb
def check(file: RunFile, out: Out = None, assign: Set = None, as_json: Json = False) -> None:
    """Validate a run file; show its plan, its price and the resolved settings. Runs nothing."""
    from backfire.check import check_page, check_record
    from backfire.config import load

    _print(check_record(load(file, assign or []), out), as_json, check_page)


@verb
def harden(
    model: Model,
    out: NewFolder,
    method: Annotated[str, typer.Option("--method", help="A defense.")] = "sdd",
    data: Data = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
) -> None:
    """Harden a model: write a folder that plain `transformers` loads, with backfire.json beside."""
    from backfire.treat import harden as work

    with _shown(progress) as shown:
        typer.echo(work(model, out, method, data, assign or [], device, shown))


@verb
def attack(
    model: Model,
    out: NewFolder,
    method: Annotated[str, typer.Option("--method", help="An attack.")] = "harmful",
    data: Data = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
) -> None:
    """Fine-tune a model as an attacker would, to measure what comes out."""
    from backfire.treat import attack as work

    with _shown(progress) as shown:
        typer.echo(work(model, out, method, data, assign or [], device, shown))


@verb
def evaluate(
    model: Model,
    out: Out = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
    as_json: Json = False,
) -> None:
    """Measure one model as it is: harm on unseen hazards, capability, perplexity."""
    from backfire.config import shipped

    experiment = shipped("audit", [f"model={json.dumps(model)}", "name=evaluate", "attacks=[]",
                                   *(assign or [])])  # fmt: skip
    _run(experiment, out, False, device, progress, {"model": model, "set": assign}, as_json)


@verb
def audit(
    model: Model,
    out: NewFolder,
    base: Annotated[
        str | None, typer.Option("--base", help="The model before hardening: the control.")
    ] = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
    as_json: Json = False,
) -> None:
    """Attack a model with the quick tier and report; with --base, beside the undefended control."""
    from backfire.config import shipped

    changes = [f"model={json.dumps(base or model)}"]
    if base is not None:
        changes.append(f"defenses=[{{name: given, model: {json.dumps(model)}}}]")
    experiment = shipped("audit", [*changes, *(assign or [])])
    passed = {"model": model, "base": base, "set": assign}
    _run(experiment, out, False, device, progress, passed, as_json)


@verb
def report(
    folder: RunFolder,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show model answers to harmful prompts unredacted.")
    ] = False,
) -> None:
    """Build the report of a run folder again from its tables."""
    from backfire.report import build

    typer.echo(build(folder, show_text=show_text))


@verb
def compare(first: RunFolder, second: RunFolder, as_json: Json = False) -> None:
    """Show paired differences, with intervals, between the cells two runs share."""
    from backfire.compare import compare_page, compare_runs

    _print(compare_runs(first, second), as_json, compare_page)


@verb
def list_(
    kind: Annotated[str | None, typer.Argument(help="One kind only, e.g. attacks.")] = None,
    as_json: Json = False,
) -> None:
    """List defenses, attacks, evaluations, judges, sources and assets."""
    from backfire.pages import list_page, list_record

    _print(list_record(kind), as_json, list_page)


@verb
def show(
    name: Annotated[str, typer.Argument(help="A name that `list` gives.")],
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print a block for a run file.")] = False,
) -> None:
    """Show one method: what it does, its settings, their defaults and where those come from."""
    from backfire.pages import show_page

    typer.echo(show_page(name, as_yaml))


@verb
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Asset names.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every asset of the demo.")] = False,
    progress: Show = "auto",
) -> None:
    """Fetch models and data sets into the cache, verified, for later work without a network."""
    from backfire.assets import fetch as get
    from backfire.pages import fetchable

    wanted = fetchable() if everything else names
    if not wanted:
        raise ConfigError("fetching: name assets (`backfire list assets`), or give --all")
    with _shown(progress) as shown:
        for name in wanted:
            typer.echo(f"{name}: {get(name, shown)}")


@verb
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, device, memory, cache, disk, network."""
    from backfire.doctor import doctor_page, doctor_record

    _print(doctor_record(), as_json, doctor_page)


def _version(wanted: bool) -> None:
    if wanted:
        from backfire import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line."""
    app()
