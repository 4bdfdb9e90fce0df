"""The theory's verbs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backfire.theory.cli import app


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.output


def told(*words: str) -> dict[str, Any]:
    return json.loads(run(*words, "--json"))  # type: ignore[no-any-return]


SINGLE = ("accuracy", "--p", ".9", "--classes", "3", "--invariant", "2", "--spurious", "20")


def test_accuracy_tells_formula_exact_value_ties_and_simulation() -> None:
    answer = told(*SINGLE, "--draws", "20000")
    assert answer["limit"]["accuracy"] == pytest.approx(0.7769, abs=1e-4)
    assert answer["limit"]["error"] == 1e-8
    assert answer["exact"]["accuracy"] == pytest.approx(0.7649, abs=1e-4)
    assert answer["exact"]["tie mass"] == pytest.approx(0.0804, abs=2e-4)
    for name in ("simulation", "simulation, sigma 0.003"):
        drawn = answer[name]["accuracy"]
        assert abs(drawn["value"] - answer["exact"]["accuracy"]) < 4.5 * drawn["standard error"]
    assert "tie mass  0.08" in run(*SINGLE, "--draws", "20000")


def test_ensembles_of_both_kinds() -> None:
    words = ("ensemble", "--first", "5,40", "--second", "3,80", "--shared", "1,6", "--p", ".95",
             "--classes", "4", "--draws", "2000", "--sigma", "0")  # fmt: skip
    assert told(*words)["limit"]["accuracy"] == pytest.approx(0.8767, abs=1e-4)
    assert told(*words, "--kind", "outputs")["limit"]["accuracy"] > 0.88
    uneven = told(*words, "--weight", "0.31")
    assert uneven["exact"]["accuracy"] is None
    assert "use the simulation" in uneven["exact"]["why"]


CASE = ("--aligned", "10,100", "--optimal", "9,101", "--p", ".95", "--classes", "4")


def test_theorems_tell_premises_and_conclusion() -> None:
    second = told("theorem2", *CASE)
    assert (second["premises"], second["conclusion"], second["holds"]) == (True, False, False)
    assert second["invariant features needed"] == pytest.approx(28.633, abs=1e-3)
    assert told("theorem2", *CASE, "--form", "sqrt")["conclusion"] is True
    assert "lowers the bound" in told("theorem1", *CASE)["reading"]
    assert "diversification" in told("theorem1", *CASE, "--shared", "0,90")["reading"]


def test_region_learned_and_bradley_terry() -> None:
    shares = told("region", "--p", "1", "--draws", "20000")
    drawn = shares["share that falls, conditional sampling"]["p=1"]
    assert drawn["value"] == pytest.approx(0.78, abs=0.02)
    points = told("learned", "--first", "2,6", "--second", "1,8", "--p", ".9", "--classes", "3",
                  "--fit", "means", "--draws", "2000")  # fmt: skip
    assert set(points) == {f"weight {w}" for w in ("0", "0.25", "0.5", "0.75", "1")}
    step = told("bradley-terry", "--probabilities", ".01,.01,.98")
    assert step["other rises"] is True
    assert step["preference for chosen"] > 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("theorem2", "--aligned", "10", *CASE[2:]), "write invariant,spurious"),
        (("theorem2", "--aligned", "a,b", *CASE[2:]), "numbers separated by commas"),
        (("theorem2", *CASE, "--form", "line"), "did you mean 'lin'"),
        (("accuracy", "--p", "2", *SINGLE[3:]), "p is a probability"),
        (("learned", "--first", "2,6", "--second", "1,8", *CASE[4:], "--fit", "x"), "unknown fit"),
    ],
)  # fmt: skip
def test_mistakes_are_messages(words: tuple[str, ...], message: str) -> None:
    assert message in run(*words, code=2)


def test_the_documented_commands_run() -> None:
    text = (Path(__file__).parents[2] / "docs/theory.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    backfire theory (.*?)(?: +#.*)?$", text, flags=re.MULTILINE)
    commands = [re.sub(r"\[.*?\]", "", line).split() for line in lines]
    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {words[0] for words in commands} == verbs
    drawing = {"accuracy", "ensemble", "region", "learned"}
    for words in commands:
        if words[0] not in ("page", "trace"):  # they have tests of their own
            run(*words, *(["--draws", "1000"] if words[0] in drawing else []))


def test_mounting_the_verbs_is_cheap() -> None:
    code = (
        "import sys, backfire.theory.cli;"
        "print([m for m in ('numpy', 'scipy', 'matplotlib', 'torch', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_is_written_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backfire.theory import figures, page

    monkeypatch.setattr(page, "all_figures", lambda: [figures.needed(), figures.ratios()])
    written = [Path(run("page", "--out", str(tmp_path / name)).strip()) for name in "ab"]
    assert written[0].read_bytes() == written[1].read_bytes()
    drawn = sorted(p.name for p in (tmp_path / "a/figures").iterdir())
    assert drawn == ["needed.svg", "ratios.svg"]
