"""The verb `backfire judge-audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backfire.console import emit, shown
from backfire.progress import Style

__all__ = ["judge_audit"]


def judge_audit(
    file: Annotated[Path, typer.Argument(help="Answers: JSONL, JSON, CSV or Parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge", help="A judge's name, its settings as YAML, or a YAML file; repeatable."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Column of labels; the first is the truth; repeatable."),
    ] = None,
    positive: Annotated[
        list[str] | None, typer.Option("--positive", help="Label that means harmful; repeatable.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", help="Label that means harmless; repeatable.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Column of prompts.")] = "prompt",
    response: Annotated[str, typer.Option("--response", help="Column of answers.")] = "response",
    suffixes: Annotated[
        bool, typer.Option("--suffixes/--no-suffixes", help="Judge again with suffixes appended.")
    ] = True,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    progress: Annotated[Style, typer.Option("--progress", help="How to show progress.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare judges with labels and with each other.

    Writes one page with figures, and its tables. Rows with other labels are left out and counted. Each
    suffix (disavowal, injected instruction, padding) judges every answer once more.
    """
    from backfire.judge_audit.trial import (
        SUFFIXES,
        Columns,
        audit,
        audit_page,
        audit_record,
        judges,
        read_labelled,
        write,
    )
    from backfire.stage import Bench

    used = judges(judge) if judge else ()
    labelled = read_labelled(
        file,
        Columns(prompt, response, tuple(label or ()), tuple(positive or ()), tuple(negative or ())),
    )
    with shown(progress) as display:
        bench = Bench(out, device=device, progress=display)
        found = audit(labelled, used, bench, suffixes=SUFFIXES if suffixes else {})
    page = write(found, out)
    record = {**audit_record(found), "page": str(page)}
    emit(record, as_json, lambda told: f"{audit_page(told)}\n\npage: {told['page']}")
