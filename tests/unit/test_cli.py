"""The command line: its verbs and flags, what goes where, and which exit code says what."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from backfire import console
from backfire.cli import app
from backfire.errors import CheckpointError, ConfigError, DataError, PrerequisiteError
from backfire.pipeline import Outcome

VERBS = {
    "demo": {"--out", "--set", "--fresh", "--device", "--progress"},
    "run": {"--out", "--set", "--fresh", "--device", "--progress", "--json"},
    "search": {"--out", "--set", "--device", "--progress", "--json"},
    "check": {"--out", "--set", "--json"},
    "harden": {"--out", "--method", "--data", "--set", "--device", "--progress"},
    "attack": {"--out", "--method", "--data", "--set", "--device", "--progress"},
    "evaluate": {"--out", "--set", "--device", "--progress", "--json"},
    "audit": {"--out", "--base", "--set", "--device", "--progress", "--json"},
    "report": {"--show-text"},
    "judge-audit": {
        "--out",
        "--judge",
        "--label",
        "--positive",
        "--negative",
        "--prompt",
        "--response",
        "--suffixes",
        "--device",
        "--progress",
        "--json",
    },
    "compare": {"--defenses", "--json"},
    "list": {"--json"},
    "show": {"--yaml"},
    "fetch": {"--all", "--verify", "--progress"},
    "doctor": {"--json"},
    "organism": set(),
    "theory": set(),
}
"""Every verb with its flags. Adding one means changing this on purpose."""


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_the_verbs_and_flags_are_these() -> None:
    root = typer.main.get_command(app)
    found = {
        name: {
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("--")
        }
        - {"--help"}
        for name, command in root.commands.items()
    }
    found["theory"] = set()
    assert found == VERBS


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, backfire.cli, typer; typer.main.get_command(backfire.cli.app);"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'pyarrow') if m in sys.modules])"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - began < 5  # generous: the machine may be busy


def test_reading_an_experiment_needs_no_torch() -> None:
    code = (
        "import sys, backfire.config, backfire.check, backfire.pages, backfire.report;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("hardn", "m"), "Did you mean 'harden'?"),
        (("harden", "m", "--ouut", "x"), "--out"),
        (("harden", "m"), "--out"),
        (("run",), "file"),
        (("run", "x.yaml", "--progress", "loud"), "'auto', 'rich', 'plain', 'none'"),
    ],
)
def test_a_wrong_command_line_is_exit_2_with_the_nearest_word(
    words: tuple[str, ...], said: str
) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (PrerequisiteError("b"), 3),
        (DataError("c"), 1),
        (CheckpointError("d"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_goes_wrong_decides_the_exit_code(error: BaseException, code: int) -> None:
    probe = typer.Typer()

    @console.register(probe)
    def fail() -> None:
        raise error

    @console.register(probe)
    def other() -> None: ...

    result = CliRunner().invoke(probe, ["fail"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert (str(error) or "interrupted") in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback_and_names_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), console.shown("none") as progress:  # noqa: PT012
        progress.record_to(tmp_path / "events.jsonl")
        raise ZeroDivisionError
    assert str(tmp_path / "events.jsonl") in capsys.readouterr().err


def test_a_polite_kill_ends_a_background_job_like_ctrl_c() -> None:
    """A shell starts background jobs with Ctrl-C ignored; the kill must not be ignored with it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), console.shown("none"):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)


def test_version_is_printed() -> None:
    from backfire import __version__

    assert call("--version").stdout.strip() == __version__


def test_a_missing_run_file_and_a_wrong_one(tmp_path: Path) -> None:
    missing = call("run", str(tmp_path / "no.yaml"))
    assert missing.exit_code == 2
    assert "no.yaml" in missing.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nmodel: tiny:llama\nevaluations: [{name: harmfulnes}]\nsedes: [1]\n")
    result = call("check", str(wrong))
    assert result.exit_code == 2
    assert "did you mean 'harmfulness'" in result.stderr
    assert "did you mean 'seeds'" in result.stderr


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Replace the pipeline; gather what it was called with."""
    seen: dict[str, Any] = {"failed": ()}

    def run(experiment: Any, out: Any, **words: Any) -> Outcome:
        seen.update(words, experiment=experiment, out=out)
        row = {
            "defense": "sdd",
            "attack": "x",
            "seed": None,
            "metric": "verified_harm",
            "value": 0.25,
            "low": 0.1,
            "high": 0.5,
        }
        conclusion = {"sentence": "No usable attack was found.", "measurements": [row]}
        return Outcome(tmp_path, tmp_path / "report.html", conclusion, 3, seen["failed"])

    monkeypatch.setattr("backfire.pipeline.run", run)
    return seen


RUN = "# Does it run?\nname: x\nmodel: tiny:llama\nevaluations: [{name: harmfulness}]\n"


def test_a_run_prints_the_verdict_on_standard_output(
    tmp_path: Path, outcome: dict[str, Any]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RUN)
    result = call("run", str(file), "--set", "seeds=[3]", "--progress", "none", "--fresh")
    assert result.exit_code == 0
    assert "No usable attack was found." in result.stdout
    assert "report.html" in result.stdout
    assert "0.25 [0.1, 0.5]" in result.stdout
    assert outcome["experiment"].seeds == (3,)
    assert outcome["experiment"].question == "Does it run?"
    assert outcome["fresh"] is True
    assert outcome["passed"] == {"file": RUN, "set": ["seeds=[3]"]}
    as_json = json.loads(call("run", str(file), "--json", "--progress", "none").stdout)
    assert as_json["conclusion"]["sentence"] == "No usable attack was found."


def test_a_run_that_failed_in_part_is_exit_1_and_still_concludes(
    tmp_path: Path, outcome: dict[str, Any]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RUN)
    outcome["failed"] = ("attack x: loss nan",)
    result = call("run", str(file), "--progress", "none")
    assert result.exit_code == 1
    assert "No usable attack" in result.stdout
    assert "loss nan" in result.stderr


def test_demo_audit_and_evaluate_are_shipped_experiments(
    tmp_path: Path, outcome: dict[str, Any]
) -> None:
    assert call("demo", "--progress", "none").exit_code == 0
    assert outcome["experiment"].name == "demo"

    out = str(tmp_path / "out")
    assert call("audit", "m: odd", "--base", "b", "--out", out, "--progress", "none").exit_code == 0
    audited = outcome["experiment"]
    assert audited.model == "b"
    assert [d.model for d in audited.active_defenses] == ["m: odd"]
    assert len(audited.active_attacks) >= 2

    assert call("audit", "m", "--out", out, "--progress", "none").exit_code == 0
    assert outcome["experiment"].model == "m"
    assert outcome["experiment"].active_defenses == ()

    assert call("evaluate", "m", "--progress", "none").exit_code == 0
    assert outcome["experiment"].active_attacks == ()


def test_list_and_show_speak_from_the_classes_own_docs() -> None:
    from backfire.defend.sdd import SDD

    listed = json.loads(call("list", "defenses", "--json").stdout)
    assert {row["name"] for row in listed} >= {"none", "sdd", "refusal_sft", "given"}
    page = call("show", "sdd").stdout
    assert (SDD.__doc__ or "").split("\n", 1)[0] in page
    assert "training.learning_rate = 5e-07" in page
    assert "TamperBench" in page
    unknown = call("show", "sd")
    assert unknown.exit_code == 2
    assert "did you mean 'sdd'" in unknown.stderr
    assert call("list", "defences").exit_code == 2


def test_what_show_prints_as_yaml_can_be_pasted() -> None:
    from backfire.config import from_text
    from backfire.pages import catalogue

    for kind in ("defenses", "attacks", "evaluations"):
        for name, member in catalogue()[kind].items():
            if any(f.is_required() for f in member.model_fields.values()) or name == "asked":
                continue  # something is to be filled in
            text = "name: x\nmodel: m\n" + call("show", name, "--yaml").stdout
            if kind != "evaluations":
                text += "evaluations: [{name: harmfulness}]\n"
            read = getattr(from_text(text, name), kind)
            assert read == (member(),), name
