"""What the pages, and the program's own messages, tell people to type is there and works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from backfire.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WRITTEN = [page for page in PAGES if page.name not in ("cli.md", "config.md")]
"""The pages that people wrote; the other two come from the program."""
SOURCES = sorted((ROOT / "src").rglob("*.py"))

_TYPED = re.compile(r"^\s*(backfire .*?)(?:\s#.*)?$", re.MULTILINE)
_QUOTED = re.compile(r"`(backfire [^`\n]*)`")


def blocks(text: str) -> Iterator[str]:
    """Yield fenced code, and code that is indented."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("bash", "text", ""):
            yield code
    yield "\n".join(line for line in text.splitlines() if line.startswith("    "))


def words(line: str) -> tuple[str, ...]:
    """Split a command; brackets mark options that may be left out."""
    return tuple(shlex.split(line.replace("[", "").replace("]", "")))[1:]


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def name(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)


TYPED = sorted(
    {
        (where(page), words(line))
        for page in WRITTEN
        for block in blocks(page.read_text(encoding="utf-8"))
        for line in _TYPED.findall(block)
    }
)
"""Whole commands, by page."""
QUOTED = sorted(
    {
        (where(path), words(line))
        for path in [*WRITTEN, *SOURCES]
        for line in _QUOTED.findall(path.read_text(encoding="utf-8"))
    }
)
"""Mentions of commands, which may leave out what does not matter there."""


def resolve(said: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Return the command that the first words name, and the words after them."""
    command: Any = typer.main.get_command(app)
    rest = list(said)
    while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no verb {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    return command, rest


def test_the_pages_show_the_commands_people_need() -> None:
    verbs = {said[0] for _, said in TYPED}
    assert verbs >= {"harden", "audit", "check", "run", "compare", "theory"}


@pytest.mark.parametrize(("page", "said"), TYPED, ids=name)
def test_a_command_on_a_page_can_be_typed(page: str, said: tuple[str, ...]) -> None:
    command, rest = resolve(said)
    command.make_context("backfire", list(rest))  # a wrong option or a missing argument raises
    for word in rest:
        if word.startswith("experiments/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize(("path", "said"), QUOTED, ids=name)
def test_a_command_that_is_mentioned_exists(path: str, said: tuple[str, ...]) -> None:
    command, rest = resolve(said)
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in rest if word.startswith("--")} <= known
    if said[0] == "list" and rest:
        assert CliRunner().invoke(app, list(said)).exit_code == 0


LOOKING = ("list", "show", "check", "doctor")
"""Verbs that change nothing and take a moment: what the pages show of them is run."""


@pytest.mark.parametrize(
    "said",
    sorted(
        {
            said
            for path, said in (*TYPED, *QUOTED)
            if said and said[0] in LOOKING and path.endswith(".md")
            if not any(word.isupper() for word in said)
        }
    ),
    ids=name,
)
def test_what_only_looks_is_run(said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, list(said), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.parametrize("page", WRITTEN, ids=where)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    named: set[str] = set()
    for path in [*WRITTEN, *SOURCES]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
            assert f"\n{target}:" in makefile, (path, target)
        for group in re.findall(r"(?:backfire|\.)\[([a-z,]+)\]", text):
            named |= set(group.split(","))
    assert named, "the pages say how to install"
    assert named <= extras


def test_the_generated_pages_are_fresh() -> None:
    tool = ROOT / "tools" / "write_docs.py"
    words = [sys.executable, str(tool), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
