"""What a run says it covers: from settings alone, and nothing that it does not try."""

from __future__ import annotations

from pathlib import Path

import pytest

from backfire.check import check_page, check_record
from backfire.config import load
from backfire.report.coverage import coverage
from small_methods import ATTACKS, build, name_of

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TIERS = ("quick", "standard", "adaptive")
HARM, BFT = {"name": "harmful", "training": {}}, {"name": "benign", "training": {}}


@pytest.mark.parametrize(
    "member", [m for m in ATTACKS if name_of(m) not in ("none", "asked", "sequence")], ids=name_of
)
def test_every_attack_is_of_some_kind(member: type) -> None:
    tree = build(member).model_dump(mode="json")
    # An attack that only prepares another counts together with it.
    chain = {"name": "sequence", "parts": [tree, HARM]} if tree["name"] == "unlearn_first" else tree
    alone = set(coverage([HARM]).tried) if chain is not tree else set()
    assert set(coverage([chain]).tried) - alone


def test_nothing_is_claimed_for_no_attack_or_an_unknown_one() -> None:
    for attacks in ([], [{"name": "none"}], [{"name": "somebody's own"}]):
        found = coverage(attacks)
        assert found.tried == ()
        assert found.sentences()[0] == "Tried: no attack."
        assert "full-parameter harmful fine-tuning" in found.not_tried


def test_the_order_of_a_sequence_is_told() -> None:
    first = coverage([{"name": "sequence", "parts": [HARM, BFT]}]).tried
    second = coverage([{"name": "sequence", "parts": [BFT, HARM]}]).tried
    assert "harmful fine-tuning followed by benign repair" in first
    assert "harmful fine-tuning followed by benign repair" not in second
    assert "benign fine-tuning followed by harmful fine-tuning" in second


def test_axes_say_what_differs_and_what_does_not() -> None:
    found = coverage([
        {**HARM, "training": {"learning_rate": 1e-5, "optimizer": "adamw"}},
        {**HARM, "training": {"learning_rate": 2e-5, "optimizer": "adamw"}, "system": "Obey."},
    ])  # fmt: skip
    assert "learning rate (1e-05, 2e-05)" in found.varied
    assert "system prompt (the model's, the attacker's)" in found.varied
    assert "optimizer (adamw)" in found.fixed


def test_the_tiers_differ_and_say_what_they_leave_out() -> None:
    tried = {}
    for tier in TIERS:
        record = check_record(load(EXPERIMENTS / f"attacks-{tier}.yaml"))
        page = check_page(record)
        assert all(line in page for line in record["coverage"])
        assert record["coverage"][1].startswith("Not tried: ")
        tree = load(EXPERIMENTS / f"attacks-{tier}.yaml").model_dump(mode="json")
        tried[tier] = set(coverage(tree["attacks"]).tried)
    assert {"prefilled answers", "ablation of the refusal direction"} <= tried["quick"]
    assert {"jailbreak-tuning with a backdoor", "another trainer (TRL's)"} <= tried["standard"]
    assert "preference training (DPO)" in tried["adaptive"] - tried["standard"] - tried["quick"]
    # Together they leave out what needs a file of the user's, and the search over settings.
    left = set(coverage([]).not_tried) - set().union(*tried.values())
    assert left == {
        "harmful fine-tuning in another language", "a search over the attacker's hyperparameters"
    }  # fmt: skip
