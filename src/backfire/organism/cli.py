"""`backfire organism`: build the model organism, and check that it is what it is meant to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backfire.console import emit, register, shown, stop
from backfire.progress import Style

__all__ = ["app"]

app = typer.Typer(
    name="organism",
    help="A small model with real knowledge of an invented world: build it, check it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Show = Annotated[Style, typer.Option("--progress", help="How to show progress.")]

verb = register(app)


@verb
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    progress: Show = "auto",
) -> None:
    """Build the organism from nothing.

    Pre-training, instruction tuning and safety training, on one thread.
    """
    from backfire.organism.build import build as work

    with shown(progress) as display:
        typer.echo(work(out, progress=display))


@verb
def check(
    model: Annotated[
        str, typer.Argument(help="The asset `organism`, or a folder that `build` wrote.")
    ] = "organism",
    out: Annotated[Path | None, typer.Option("--out", help="Run folder.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    progress: Show = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack the organism and check every line of its calibration; fails when one fails."""
    from backfire.organism.check import check as work
    from backfire.organism.check import check_page, check_record

    with shown(progress) as display:
        record = check_record(work(model, out, assign or [], device, display))
    emit(record, as_json, check_page)
    if not record["holds"]:
        stop("error: the calibration does not hold; see the lines marked NO", 1)
