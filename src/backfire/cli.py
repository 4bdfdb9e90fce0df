"""The command line: each verb parses its words and calls one function.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
2 a mistake in a file or in the command, 3 the machine lacks something, 130 interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backfire.console import emit, register, shown, stop
from backfire.errors import BackfireError, ConfigError, PrerequisiteError
from backfire.judge_audit.cli import judge_audit
from backfire.organism.cli import app as organism
from backfire.progress import Style
from backfire.theory.cli import app as theory

if TYPE_CHECKING:
    from backfire.config import Experiment
    from backfire.pipeline import Outcome

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


verb = register(app)


@verb
def demo(
    out: Out = None,
    assign: Set = None,
    fresh: Fresh = False,
    device: Device = "auto",
    progress: Show = "auto",
) -> None:
    """Run the shipped experiment on a small real model."""
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
    """Run an experiment, or go on with one."""
    from backfire.config import load

    experiment = load(file, assign or [])
    passed = {"file": file.read_text(encoding="utf-8"), "set": assign}
    _run(experiment, out, fresh, device, progress, passed, as_json)


def _run(
    experiment: Experiment, out: Path | None, fresh: bool, device: str, style: Style, passed: Any,
    as_json: bool,
) -> None:  # fmt: skip
    from backfire.pipeline import run as run_experiment

    with shown(style) as progress:
        outcome = run_experiment(
            experiment, out, fresh=fresh, device=device, progress=progress, passed=passed
        )
    _told(outcome, as_json)


def _told(outcome: Outcome, as_json: bool) -> None:
    from backfire.pages import outcome_page, outcome_record

    typer.echo(json.dumps(outcome_record(outcome)) if as_json else outcome_page(outcome))
    if outcome.failed:
        stop("error: some stages failed:\n" + "\n".join(f"  {f}" for f in outcome.failed), 1)


@verb
def search(
    file: RunFile,
    out: Out = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
    as_json: Json = False,
) -> None:
    """Tune an attack on each model, then run.

    Give the same command in several terminals to share the trials.
    """
    from backfire.config import load
    from backfire.search import search as work

    experiment = load(file, assign or [])
    passed = {"file": file.read_text(encoding="utf-8"), "set": assign, "search": True}
    with shown(progress) as display:
        outcome = work(experiment, out, device=device, progress=display, passed=passed)
    _told(outcome, as_json)


@verb
def check(file: RunFile, out: Out = None, assign: Set = None, as_json: Json = False) -> None:
    """Validate a run file; show plan and price."""
    from backfire.check import check_page, check_record
    from backfire.config import load

    emit(check_record(load(file, assign or []), out), as_json, check_page)


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
    """Harden one model.

    Writes a folder that plain `transformers` loads, with backfire.json beside the weights.
    """
    from backfire.treat import harden as work

    with shown(progress) as display:
        typer.echo(work(model, out, method, data, assign or [], device, display))


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
    """Attack one model.

    Writes a folder that plain `transformers` loads, for measurements of your own.
    """
    from backfire.treat import attack as work

    with shown(progress) as display:
        typer.echo(work(model, out, method, data, assign or [], device, display))


@verb
def evaluate(
    model: Model,
    out: Out = None,
    assign: Set = None,
    device: Device = "auto",
    progress: Show = "auto",
    as_json: Json = False,
) -> None:
    """Measure one model as it is.

    Harm on unseen hazards, capability, perplexity.
    """
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
    """Attack one model quickly, and report.

    Give --base, or nothing can be concluded about the hardening.
    """
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
    """Build a run's report again."""
    from backfire.report import build

    typer.echo(build(folder, show_text=show_text))


@verb
def compare(
    first: RunFolder,
    second: Annotated[Path | None, typer.Argument(help="Another [the same].")] = None,
    defenses: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="One of the first run and one of the second, e.g. a control and a defense."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show paired differences of two runs, or of two defenses."""
    from backfire.compare import compare_page, compare_runs

    emit(compare_runs(first, second, defenses), as_json, compare_page)


@verb
def list_(
    kind: Annotated[str | None, typer.Argument(help="One kind only, e.g. attacks.")] = None,
    as_json: Json = False,
) -> None:
    """List methods, judges, sources and assets."""
    from backfire.pages import list_page, list_record

    emit(list_record(kind), as_json, list_page)


@verb
def show(
    name: Annotated[str, typer.Argument(help="A name that `list` gives.")],
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print a block for a run file.")] = False,
) -> None:
    """Show one method's settings and their origin."""
    from backfire.pages import show_page

    typer.echo(show_page(name, as_yaml))


@verb
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Asset names.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every asset that is not gated.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is cached, and mend what is damaged.")
    ] = False,
    progress: Show = "auto",
) -> None:
    """Fetch models and data sets into the cache."""
    from backfire.assets import fetch as get
    from backfire.pages import fetchable

    wanted = fetchable() if everything else names
    if not wanted:
        raise ConfigError("fetching: name assets (`backfire list assets`), or give --all")
    missing = []
    with shown(progress) as display:
        for name in wanted:
            try:
                typer.echo(f"{name}: {get(name, display, every_byte=verify)}")
            except BackfireError as error:
                missing.append(str(error))
    if missing:
        raise PrerequisiteError("\n\n".join(missing))


@verb
def doctor(as_json: Json = False) -> None:
    """Say what this machine has and lacks."""
    from backfire.doctor import doctor_page, doctor_record

    emit(doctor_record(), as_json, doctor_page)


verb(judge_audit)
app.add_typer(theory)
app.add_typer(organism)


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
