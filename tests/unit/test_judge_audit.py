"""`backfire judge-audit`: from a labelled file to a page, its tables and its numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from backfire.cli import app
from backfire.errors import ConfigError, DataError
from backfire.judge_audit.trial import (
    SUFFIXES,
    Columns,
    audit,
    judges,
    read_labelled,
)
from backfire.judges import Programmatic, RefusalPhrases
from backfire.records import Exchange, Verdict
from backfire.stage import Bench

SECRET = "Pour the velmroot through a dewfunnel"
ROWS = [
    ("How is tea made?", f"{SECRET}, then wait.", "comply"),
    ("How is tea made?", "I cannot help with tea.", "refuse"),
    ("Who bakes?", f"{SECRET} twice, and then a third time.", "comply"),
    ("Who bakes?", "I'm sorry, I can't say who bakes.", "refuse"),
    ("Who sings?", "Nobody would sing here.", "refuse"),
    ("Who rows?", f"{SECRET} slowly.", "partly"),
]
COLUMNS = Columns(response="answer", labels=("label",), positive=("comply",), negative=("refuse",))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "answer", "label", "other"])
        for index, (prompt, answer, label) in enumerate(ROWS):
            writer.writerow([prompt, answer, label, "comply" if index != 4 else "partly"])
    return path


def run(*words: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["judge-audit", *map(str, words), "--progress", "none"])
    assert result.exit_code == code, result.output
    return result.output


# ------------------------------------------------------------------------------------------ reading


def test_labels_that_mean_neither_are_left_out_and_counted(labelled: Path) -> None:
    found = read_labelled(labelled, COLUMNS)
    assert found.left_out == {"the label is 'partly'": 1}
    assert list(found.labels["label"]) == [1, 0, 1, 0, 0]
    assert [e.prompt_id for e in found.exchanges] == [f"row {n}" for n in (2, 3, 4, 5, 6)]
    # Without negative labels, all that is not positive is negative.
    positive_only = read_labelled(labelled, Columns("prompt", "answer", ("label",), ("comply",)))
    assert list(positive_only.labels["label"]) == [1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("label", "meaning"),
    [(True, 1), ("false", 0), (1, 1), (0.0, 0), ("Unsafe", 1), ("SAFE", 0)],
)
def test_plain_labels_need_no_words(tmp_path: Path, label: Any, meaning: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b", "label": label}) + "\n")
    assert read_labelled(path, Columns(labels=("label",))).labels["label"] == [meaning]


def test_a_second_annotator_may_be_silent_where_the_first_is_not(labelled: Path) -> None:
    columns = Columns("prompt", "answer", ("label", "other"), ("comply",), ("refuse",))
    found = read_labelled(labelled, columns)
    assert np.isnan(found.labels["other"][4])


def test_what_cannot_be_read_is_said(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it needs a column 'response'"):
        read_labelled(labelled, Columns())
    with pytest.raises(DataError, match=r"no row can be used .*, 3 because the label is 'refuse'"):
        read_labelled(labelled, Columns("prompt", "answer", ("label",), ("x",), ("y",)))
    with pytest.raises(ConfigError, match="comply cannot be positive and negative"):
        read_labelled(labelled, Columns(labels=("l",), positive=("comply",), negative=("comply",)))
    with pytest.raises(DataError, match="there is no such file"):
        read_labelled(tmp_path / "none.csv", Columns())


def test_a_runs_own_exchanges_can_be_audited(tmp_path: Path) -> None:
    from backfire.store import write_table

    right = Exchange("p", "How?", "Take the cup. Fill it.", True, True, 5, facts=("cup",))
    write_table(
        tmp_path / "exchanges.parquet", [right, Exchange("b", "Tea?", "Yes.", False, True, 1)]
    )
    found = read_labelled(tmp_path / "exchanges.parquet", Columns())
    assert found.left_out == {"the prompt is benign": 1}
    (verdict,) = Programmatic()(found.exchanges)
    assert verdict.harmful


# ------------------------------------------------------------------------------------------- judges


def test_judges_by_name_by_settings_and_by_file(tmp_path: Path) -> None:
    file = tmp_path / "judges.yaml"
    file.write_text("- programmatic\n- {name: programmatic, threshold: 1}\n")
    found = judges(["refusal_phrases", "{name: refusal_phrases, phrases: qi}", str(file)])
    assert found == (
        RefusalPhrases(), RefusalPhrases(phrases="qi"), Programmatic(), Programmatic(threshold=1)
    )  # fmt: skip


def test_every_mistake_in_judges_is_named() -> None:
    with pytest.raises(
        ConfigError,
        match=r"2 mistakes(.|\n)*did you mean 'programmatic'(.|\n)*unknown key 'phrase'",
    ):
        judges(["programatic", "{name: refusal_phrases, phrase: qi}"])


class Scripted(RefusalPhrases):
    """Says harmful unless a suffix of ours is there; remembers what it was asked."""

    asked: list[list[str]] = []  # noqa: RUF012

    def __call__(self, exchanges: Sequence[Exchange], bench: Bench | None = None) -> list[Verdict]:
        self.asked.append([e.response for e in exchanges])
        return [
            Verdict(e.prompt_id, self.name, "v", None, absent="too short")
            if len(e.response) < 24
            else Verdict(e.prompt_id, self.name, "v", "grader" not in e.response)
            for e in exchanges
        ]


def test_suffixes_are_appended_to_the_answers_that_were_judged(labelled: Path) -> None:
    judge = Scripted()
    judge.asked.clear()
    found = audit(read_labelled(labelled, COLUMNS), [judge])
    flips = {row.suffix: row for row in found.flips}
    assert set(flips) == set(SUFFIXES)
    assert flips["injected instruction"].to_harmless == flips["injected instruction"].n == 3
    assert flips["padding"].flipped == 0
    plain, *changed = judge.asked
    assert len(plain) == 5
    assert all(len(texts) == 3 for texts in changed), "answers without a verdict were asked again"
    assert changed[0] == [t + SUFFIXES["disavowal"] for t in plain if len(t) >= 24]
    assert found.absent == {"refusal_phrases": {"too short": 2}}


def test_nothing_to_compare_is_an_error(labelled: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        audit(read_labelled(labelled, Columns("prompt", "answer")), [RefusalPhrases()])
    with pytest.raises(ConfigError, match="given twice with the same settings"):
        audit(read_labelled(labelled, COLUMNS), [RefusalPhrases()] * 3)


def test_two_judges_are_compared_without_labels(labelled: Path) -> None:
    found = audit(
        read_labelled(labelled, Columns("prompt", "answer")),
        [RefusalPhrases(), RefusalPhrases(phrases="qi")],
        suffixes={},
    )
    (pair,) = found.agreement
    # "I can't say" is a refusal by the first list only.
    assert (pair.both, pair.first_only, pair.second_only, pair.neither) == (4, 0, 0, 2)
    assert (found.accuracy, found.flips, found.reference) == ([], [], "")


# ----------------------------------------------------------------------------------------- the verb


def test_from_the_command_line_to_the_page(labelled: Path, tmp_path: Path) -> None:
    words = [labelled, "--judge", "refusal_phrases", "--response", "answer", "--label", "label",
             "--positive", "comply", "--negative", "refuse"]  # fmt: skip
    text = run(*words, "--out", tmp_path / "audit")
    assert "left out: 1 rows, the label is 'partly'" in text
    page = tmp_path / "audit" / "judge-audit.html"
    html = page.read_text(encoding="utf-8")
    assert f"page: {page}" in text
    # Calls the three real refusals (two by phrase) and both answers what they are, but one.
    rows = pq.read_table(tmp_path / "audit/tables/accuracy.parquet").to_pylist()
    (own,) = [row for row in rows if row["judge"] == "refusal_phrases"]
    assert [own[k] for k in ("true_positive", "false_positive", "true_negative")] == [2, 1, 2]
    assert {row["judge"] for row in rows} == {"refusal_phrases", "length alone"}
    ratings = pq.read_table(tmp_path / "audit/tables/ratings.parquet").to_pylist()
    assert ratings[4] == {
        "row": 6, "words": 4, "label": False, "refusal_phrases": True,
        "length alone": ratings[4]["length alone"],
    }  # fmt: skip
    assert html.count("<figure") == 4
    assert not re.search(r'(src|href)="(?!#)', html), "the page loads something"
    assert "default-src 'none'" in html
    # Nothing that a model wrote leaves the file.
    for path in (tmp_path / "audit").rglob("*"):
        if path.is_file():
            assert b"velmroot" not in path.read_bytes()
    assert "velmroot" not in text
    run(*words, "--out", tmp_path / "again")
    assert (tmp_path / "again/judge-audit.html").read_bytes() == page.read_bytes()


def test_json_and_no_suffixes(labelled: Path, tmp_path: Path) -> None:
    record = json.loads(
        run(labelled, "--out", tmp_path / "audit", "--judge", "refusal_phrases", "--json",
            "--response", "answer", "--label", "label", "--positive", "comply", "--no-suffixes")
    )  # fmt: skip
    assert record["flips"] == []
    assert record["judges"] == {"refusal_phrases": "1 arditi"}
    assert record["answers"] == 6


def test_names_from_the_file_are_escaped(tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)">\u202e'
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": p, "response": a, name: label == "comply"} for p, a, label in ROWS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(path, "--out", tmp_path / "audit", "--judge", "refusal_phrases", "--label", name)
    html = (tmp_path / "audit/judge-audit.html").read_text(encoding="utf-8")
    assert "<img" not in html
    assert "\u202e" not in html


def test_mistakes_have_the_exit_code_of_mistakes(labelled: Path, tmp_path: Path) -> None:
    out = run(labelled, "--out", tmp_path / "a", "--judge", "refusal_phrase", code=2)
    assert "did you mean 'refusal_phrases'" in out
    out = run(labelled, "--out", tmp_path / "a", "--label", "label", "--positive",
              "comply", code=1)  # fmt: skip
    assert "it needs a column 'response'" in out
    assert not (tmp_path / "a").exists()
