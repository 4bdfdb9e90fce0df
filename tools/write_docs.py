"""Write the pages that the program itself can tell; `--check` fails when they are stale.

docs/cli.md and docs/config.md wholly, and the tables of docs/methods.md between their marks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

DOCS = Path(__file__).parents[1] / "docs"


def cli_page() -> str:
    """Return every verb's help."""
    from backfire.cli import app

    lines = [
        "# Command line",
        "",
        "Made by `tools/write_docs.py` from the program's own help. Results go to standard output, all",
        "else to standard error. Exit codes: 0 done, 1 failed, 2 a mistake in a file or a command,",
        "3 the machine lacks something, 130 interrupted.",
    ]
    for name, command in _walk(typer.main.get_command(app), "backfire"):
        context = command.make_context(name, [], resilient_parsing=True)
        context.terminal_width = 96  # the same in every terminal
        lines += ["", f"## `{name}`", "", "```text", command.get_help(context).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and all below it; their class is Click's or Typer's copy of it, by version."""
    yield name, command
    for child, found in getattr(command, "commands", {}).items():
        yield from _walk(found, f"{name} {child}")


def config_page() -> str:
    """Return every setting of a run file with its default and its words."""
    from backfire.config import Experiment
    from backfire.data import DataSettings
    from backfire.data.chat import ChatFormat
    from backfire.engine import LoRA, Training
    from backfire.evaluate.verdict import VerdictSettings
    from backfire.pages import catalogue, show_page

    lines = [
        "# Run files",
        "",
        "Made by `tools/write_docs.py` from the settings' own documentation. A run file is one YAML",
        "file; `--set key.path=value` changes one setting; `backfire check FILE` names every mistake.",
    ]
    shared: dict[str, type[BaseModel]] = {
        "The experiment": Experiment,
        "`chat`": ChatFormat,
        "`data`": DataSettings,
        "`training` of a defense or attack": Training,
        "`training.lora`": LoRA,
        "`verdict`": VerdictSettings,
    }
    for title, model in shared.items():
        lines += ["", f"## {title}", ""]
        for name, field in model.model_fields.items():
            default = (
                "must be given"
                if field.is_required()
                else f"`{_short(field.get_default(call_default_factory=True))}`"
            )
            words = " ".join((field.description or "").split())
            lines.append(f"- **`{name}`** ({default}): {words}")
    for kind, members in catalogue().items():
        lines += ["", f"## {kind.capitalize()}"]
        for name in members:
            page = show_page(name) if sum(name in m for m in catalogue().values()) == 1 else ""
            if page:
                lines += ["", f"### `{name}`", "", "```text", page, "```"]
    return "\n".join(lines) + "\n"


def methods_page() -> str:
    """Return the page of methods with its tables made anew.

    Raises:
        SystemExit: when a method has no page of its own.
    """
    from backfire.attack import AnyAttack
    from backfire.defend import AnyDefense
    from backfire.mistakes import models_in

    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    for kind, union in (("defenses", AnyDefense), ("attacks", AnyAttack)):
        rows = [_method(member) for member in models_in(union) if _name(member) != "none"]
        head = "| method | F/B a step | copies | trains | harmful answers | rows it may read |"
        table = "\n".join([head, "|---|---|---|---|---|---|", *rows])
        start = f"<!-- {kind}: made by tools/write_docs.py -->\n"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition("<!-- end -->")
        page = f"{before}{start}{table}\n<!-- end -->{after}"
    return page


_ELSEWHERE = {"given": "not known | none", "sequence": "its parts' | its parts'"}
"""What methods read that leave it to others."""


def _method(member: Any) -> str:
    """Return a method's row, with a link to its page."""
    from backfire.engine.settings import Trained

    name = _name(member)
    if not (DOCS / "methods" / f"{name}.md").is_file():
        sys.exit(f"docs/methods/{name}.md is missing: every method has a page")
    link = f"[`{name}`](methods/{name}.md)"
    roles = ", ".join(f"`{role}`" for role in member.roles) or "none"
    harmful = {"defender_harm", "attacker"} & set(member.roles)
    answers = "yes" if harmful and member.reads_answers else "no"
    if not issubclass(member, Trained):
        return f"| {link} | none | 0 | nothing | {_ELSEWHERE.get(name, f'{answers} | {roles}')} |"
    default = member.model_construct()  # some fields may have no default
    training = default.training
    steps = 1000  # many, so that passes made once in a while show
    passes = "/".join(f"{count / steps:g}" for count in default.passes(steps))
    lora = training.lora
    trains = f"LoRA, rank {lora.rank}" if lora else "all weights"
    return f"| {link} | {passes} | {member.copies} | {trains} | {answers} | {roles} |"


def _name(member: Any) -> str:
    return str(member.model_fields["name"].default)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(...)"


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    pages = {"cli.md": cli_page(), "config.md": config_page(), "methods.md": methods_page()}
    for name, text in pages.items():
        path = DOCS / name
        if check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"stale: docs/{', docs/'.join(stale)}; run `make docs` and commit the result")


if __name__ == "__main__":
    main()
