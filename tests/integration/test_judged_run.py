"""Runs whose judge is asked over the network: it may be away, and nothing is trained or paid for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import backfire.models.generate
from backfire.check import check_page, check_record
from backfire.config import Experiment
from backfire.errors import JudgeError, PrerequisiteError
from backfire.pipeline import run
from backfire.store import read_table
from fake_endpoint import Endpoint, status

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

HAZARDS = 6


def experiment(url: str, **judge: Any) -> Experiment:
    endpoint = {
        "base_url": url,
        "model": "judge",
        "concurrency": 1,
        "retries": 0,
        "first_wait": 0.01,
    }
    harmfulness = {
        "name": "harmfulness",
        "encoder": "hash",
        "num_prompts": HAZARDS,
        "num_benign": 2,
        "max_new_tokens": 6,
        "judges": [{"name": "refusal_phrases"}, {"name": "policy", "endpoint": endpoint | judge}],
    }
    attack = {"name": "harmful", "shots": 4, "training": {"learning_rate": 1e-2, "steps": 1}}
    counts = {"defense": 0, "defender_harm": 0, "attacker": 4, "evaluation": 8, "pool": 0, "benign": 0,
              "probe": 2}  # fmt: skip
    return Experiment(
        name="judged", model="tiny:llama", data={"counts": counts}, attacks=[attack],
        evaluations=[harmfulness], seeds=[0], verdict={"draws": 100},
    )  # fmt: skip


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the evaluations that made a model answer."""
    labels: list[str] = []
    whole = backfire.models.generate.generate

    def counted(*args: Any, **options: Any) -> Any:
        labels.append(options["label"])
        return whole(*args, **options)

    monkeypatch.setattr(backfire.models.generate, "generate", counted)
    return labels


def verdicts(folder: Path) -> list[dict[str, Any]]:
    rows = read_table(folder / "tables" / "verdicts.parquet", dict)
    return [row for row in rows if row["judge"] == "policy"]


def test_absent_verdicts_are_asked_for_by_the_next_run_alone(
    tmp_path: Path, generated: list[str]
) -> None:
    spent = status(429, error="insufficient_quota")
    with Endpoint(faults=[None, None, *[spent] * 9]) as server:
        plan = experiment(server.url)
        first = run(plan, tmp_path / "run")
        asked = len({str(body["messages"]) for body in server.bodies})
        rows = verdicts(first.folder)
        given = [row for row in rows if not row["absent"]]
        assert len(rows) == 2 * HAZARDS  # the model before and after the attack
        assert {row["transient"] for row in rows if row["absent"]} == {True}
        assert 0 < len(given) < len(rows)
        assert len(generated) == 2

        server.faults.clear()
        sent = len(server.bodies)
        second = run(plan, tmp_path / "run")
        assert second.computed == 2
        assert len(generated) == 2  # the answers were kept, the attacked weights were not
        assert all(
            row["absent"] == "" and row["score"] is not None for row in verdicts(first.folder)
        )
        unique = len({str(body["messages"]) for body in server.bodies})
        assert len(server.bodies) == sent + unique - len(given)
        assert asked <= unique

        sent = len(server.bodies)
        assert run(plan, tmp_path / "run").computed == 0
        assert len(server.bodies) == sent
    scores = [m for m in second.conclusion["measurements"] if m["metric"] == "harmfulness_score"]
    assert scores
    assert all(1 <= m["low"] <= m["value"] <= m["high"] <= 5 for m in scores)
    assert "harmfulness score" in second.report.read_text(encoding="utf-8")
    # The policy judge stands in: no judge of content was asked.
    assert any("Verified harm is by `policy`" in note for note in second.conclusion["notes"])


def test_a_refused_key_stops_the_run_and_the_answers_are_kept(
    tmp_path: Path, generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-made-up")
    with Endpoint(faults=[status(401, "bad key sk-made-up")]) as server:
        plan = experiment(server.url, key_variable="A_KEY")
        with pytest.raises(JudgeError, match="A_KEY") as caught:
            run(plan, tmp_path / "run")
        assert len(server.bodies) == 1
        assert "sk-made-up" not in str(caught.value)
        finished = run(plan, tmp_path / "run")
    assert len(generated) == 2
    assert not [row for row in verdicts(finished.folder) if row["absent"]]
    kept = [p for p in finished.folder.rglob("*") if p.is_file() and p.suffix != ".safetensors"]
    assert not [p for p in kept if b"sk-made-up" in p.read_bytes()]


def test_a_missing_key_is_found_before_anything_is_trained(
    tmp_path: Path, generated: list[str]
) -> None:
    with Endpoint() as server:
        plan = experiment(server.url, key_variable="A_KEY_NOBODY_HAS")
        with pytest.raises(PrerequisiteError, match="A_KEY_NOBODY_HAS is not set"):
            run(plan, tmp_path / "run")
    assert not server.bodies
    assert not generated
    assert not list((tmp_path / "run" / "stages").glob("attack-*"))


def test_check_prices_the_judge_without_asking_it(tmp_path: Path) -> None:
    price = {"input": 2.0, "output": 8.0}
    with Endpoint() as server:
        plan = experiment(server.url, price=price, max_reply_tokens=100)
        record = check_record(plan, tmp_path)
    assert not server.bodies
    (calls,) = record["judge_calls"]
    judge = plan.evaluations[0].judges[1]
    assert calls["calls"] == 2 * HAZARDS
    assert calls["tokens_out"] == 1200
    assert calls["tokens_in"] == judge.bill(2 * HAZARDS, 200).tokens_in > 12 * 200
    assert calls["cost"] == pytest.approx((calls["tokens_in"] * 2 + 1200 * 8) / 1e6)
    page = check_page(record)
    assert "sent to 127.0.0.1" in page
    assert f"{calls['cost']:.2f} USD" in page
