"""Experiments: labels, controls, digests, overrides, the resolved file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfire.config import Experiment, from_text, load, resolved_yaml
from backfire.errors import ConfigError
from backfire.records import Cell

SMALL = """# Does it hold?
name: small
model: tiny:llama
defenses: [{name: sdd}]
attacks: [{name: harmful, shots: 10}, {name: benign}]
evaluations: [{name: harmfulness}]
seeds: [3, 4]
"""


def small(*assignments: str) -> Experiment:
    return from_text(SMALL, "small.yaml", assignments)


def mistakes(*assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        small(*assignments)
    return str(caught.value)


def test_the_question_is_the_first_comment_unless_it_is_a_setting() -> None:
    assert small().question == "Does it hold?"
    assert small("question=Why?").question == "Why?"


def test_the_controls_belong_to_every_grid() -> None:
    cells = small("seeds=[0]").cells
    assert cells == [
        Cell(d, a, 0) for d in ("none", "sdd") for a in ("none", "mft-10-full", "bft-full")
    ]
    listed = small("seeds=[0]", "defenses=[{name: none}, {name: sdd}]", "attacks=[{name: none}]")
    assert listed.cells == [Cell("none", "none", 0), Cell("sdd", "none", 0)]


def test_equal_labels_are_refused_and_both_entries_named() -> None:
    said = mistakes("attacks=[{name: harmful}, {name: benign}, {name: harmful}]")
    assert "entries 0 and 2 have the same label 'mft-100-full'" in said


@pytest.mark.parametrize("label", ["none", "align"])
def test_labels_with_a_meaning_are_reserved(label: str) -> None:
    assert "belong to the control" in mistakes(f"defenses.0.label={label}")
    assert "belong to the control" in mistakes(f"attacks.0.label={label}")
    assert "belong to the control" in mistakes("defenses=[{name: none, label: base}]")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("seeds=[1, 1]", "a seed is repeated"),
        ("seeds=[-1]", "greater than or equal to 0"),
        ("seeds=[]", "at least 1 item"),
        (
            "evaluations=[{name: perplexity}, {name: perplexity}]",
            "given more than once: perplexity",
        ),
        ("evaluations=[]", "at least 1 item"),
        ("name=Not A Name", "should match pattern"),
        ("defenses.0.training.steps=0", "defenses.0.training.steps"),
        ("defenses.0.trainin.steps=1", "did you mean 'training'"),
        ("attacks.0.training={steps: 5, epochs: 5}", "exactly one of `epochs` and `steps`"),
        ("data.counts.atacker=3", "did you mean 'attacker'"),
        ("data.hazards=[{name: fictionl}]", "did you mean 'fictional'"),
    ],
)
def test_a_wrong_value_is_said_with_its_place(assignment: str, said: str) -> None:
    assert said in mistakes(assignment)


def test_mistakes_in_several_places_come_together() -> None:
    said = mistakes("seeds=[1, 1]", "modle=x", "defenses.0.name=sd", "attacks.7.shots=1")
    assert "4 mistakes" in said
    for part in ("a seed is repeated", "'model'", "'sdd'", "index from 0 to 1"):
        assert part in said


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        load(tmp_path / "no.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load(tmp_path / "binary.yaml")


def test_the_resolved_file_is_the_same_experiment_and_labels_still_follow() -> None:
    text = resolved_yaml(small())
    assert text.startswith("# Does it hold?\n")
    again = from_text(text, "again")
    assert again == small()
    assert again.digest == small().digest
    # A label made from the settings is not frozen into the file.
    assert from_text(text, "again", ["attacks.0.shots=50"]).attacks[0].label == "mft-50-full"


@settings(max_examples=25, deadline=None)
@given(st.permutations(SMALL.split("\n")[1:-1]))
def test_the_digest_ignores_the_order_of_keys(lines: list[str]) -> None:
    assert from_text("\n".join(["# Does it hold?", *lines]), "shuffled").digest == small().digest


def test_the_digest_follows_what_can_change_a_number_and_nothing_else() -> None:
    assert small("question=other", "keep_attacked=true").digest == small().digest
    others = ["seeds=[3]", "attacks.0.shots=11", "defenses.0.training.steps=7", "chat.system=x"]
    assert len({small(other).digest for other in others} | {small().digest}) == 5


ASSIGNMENTS = ["seeds=[7]", "attacks.0.shots=50", "data.counts.benign=9", "verdict.rho=0.8",
               "align={name: refusal_sft}", "chat.system=be kind"]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(ASSIGNMENTS), max_size=4))
def test_setting_twice_is_setting_once(chosen: list[str]) -> None:
    assert small(*chosen, *chosen) == small(*chosen)


def test_the_schema_documents_every_setting() -> None:
    schema = Experiment.schema_of()
    assert set(schema["properties"]) == set(Experiment.model_fields)
    assert all(
        "description" in about for about in schema["properties"].values() if "$ref" not in about
    )
