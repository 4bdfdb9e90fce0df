"""One whole `backfire search` on a tiny model: trained for real, judged by a rule that is known."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from typer.testing import CliRunner

from backfire.attack import Harmful
from backfire.attack.search import Search
from backfire.cli import app
from backfire.config import Confirm, Experiment
from backfire.data import Counts, DataSettings
from backfire.evaluate.verdict import VerdictSettings
from backfire.models.load import read_note
from backfire.progress import Silent
from backfire.records import Answer, Checkpoint, Role, Verdict
from backfire.search.run import search
from backfire.stage import Bench, Settings
from backfire.store import read_json

RATE = "training.learning_rate"
FRESH, KEPT_BACK = 7, 10


def rate_of(checkpoint: Checkpoint) -> float:
    """Return the rate a model was attacked with; 0: it was not."""
    method = read_note(checkpoint.path)[1].get("method", {})
    return float(method["training"]["learning_rate"]) if method.get("name") == "harmful" else 0.0


def harm_of(rate: float, asked: int) -> int:
    """Return how many answers are harmful: the more the higher the rate is."""
    return round(asked * (1 + (math.log10(rate) + 3) / 3)) if rate else 0


class Asked(Settings):
    """As harmful as the rate says; on fresh seeds half of that."""

    name: Literal["harmfulness"] = "harmfulness"
    roles: ClassVar[tuple[Role, ...]] = ("evaluation",)
    num_prompts: int | None = None
    num_benign: int = 0

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, list[Any]]:
        rows = list(bench.data["evaluation"])[: self.num_prompts]
        fresh = read_note(checkpoint.path)[1].get("seed") == FRESH
        harmful = harm_of(rate_of(checkpoint), len(rows)) // (2 if fresh else 1)
        return {
            "verdicts": [
                Verdict(row.id, "programmatic", "1", i < harmful) for i, row in enumerate(rows)
            ]
        }


class Known(Settings):
    """All right up to a rate of 1e-4, half of it above."""

    name: Literal["capability"] = "capability"
    roles: ClassVar[tuple[Role, ...]] = ()

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> dict[str, list[Any]]:
        options = 2 if rate_of(checkpoint) > 1e-4 else 1
        return {
            "answers": [Answer("quiz", str(i), 0, i % options, i % options, 4) for i in range(40)]
        }


class Judged(Experiment):
    evaluations: tuple[Asked | Known, ...] = (Asked(), Known())


def experiment(*strategies: str) -> Judged:
    counts = Counts(
        defense=8, defender_harm=0, attacker=6, evaluation=30, pool=0, benign=0, probe=0
    )
    return Judged(
        name="search",
        model="tiny:llama",
        seeds=(0,),
        data=DataSettings(counts=counts),
        verdict=VerdictSettings(draws=100),
        confirm=Confirm(seeds=(FRESH,), prompts=KEPT_BACK),
        search=Search.model_validate(
            {
                "attack": {
                    "name": "harmful",
                    "shots": 6,
                    "training": {"steps": 2, "batch_size": 4, "drop_last": False},
                },
                "flops": 1e12,
                "trials": 7,
                "strategies": strategies,
                "startup": 4,
                "space": {RATE: {"low": 1e-6, "high": 1e-3, "log": True}},
                "proxy": {"at": 0.5, "prompts": 20, "least": 4, "audit": 0.0},
            }
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def _no_disk_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a search by three strategies, and its record."""
    folder = tmp_path_factory.mktemp("search") / "run"
    wanted = experiment("constrained", "raw", "random")
    outcome = search(wanted, folder, device="cpu", progress=Silent())
    assert outcome.failed == ()
    return folder, read_json(folder / "search.json")["searches"]


def test_every_trials_price_is_what_it_takes(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    journals = [*whole[0].glob("search/*/journal.jsonl")]
    assert len(journals) == 3
    for one in whole[1]:
        measured = [t for t in one["trials"] if t["status"] == "measured"]
        # Two steps of 4 and 2 rows are the same six rows in every trial.
        assert len({t["flops"] for t in measured}) == 1
        stopped = [t for t in one["trials"] if t["status"] == "stopped"]
        assert all(0.4 < t["flops"] / measured[0]["flops"] < 0.9 for t in stopped)
        assert one["spent"] == pytest.approx(sum(t["flops"] for t in one["trials"]))
    claims = [
        line["user_attr"]["claim"]
        for journal in journals
        for line in map(json.loads, journal.read_text(encoding="utf-8").splitlines())
        if "claim" in line.get("user_attr", {})
    ]
    assert len(claims) == 21
    price = whole[1][0]["trials"][0]["flops"]
    assert [c["quote"] for c in claims] == [pytest.approx(price)] * 21


def test_what_is_found_is_known_by_hand(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    """Harm rises with the rate, capability is lost above 1e-4: both numbers follow from the rate alone."""
    assert [one["strategy"] for one in whole[1]] == ["constrained", "raw", "random"]
    for one in whole[1]:
        usable = {}
        for trial in one["trials"]:
            rate = trial["values"][RATE]
            assert trial["proxy"] == harm_of(rate, 20) / 20
            if trial["status"] == "measured":
                assert trial["harm"] == harm_of(rate, 20) / 20
                usable[trial["number"]] = trial["harm"] if rate <= 1e-4 else 0.0
                assert trial["usable"] == usable[trial["number"]]
        best = next(t for t in one["trials"] if t["number"] == one["best"])
        assert best["usable"] == max(usable.values()) > 0
        again = one["again"]
        assert (again["seeds"], again["prompts"]) == ([FRESH], KEPT_BACK)
        assert again["usable"]["value"] == harm_of(best["values"][RATE], KEPT_BACK) // 2 / KEPT_BACK


def test_a_validated_proxy_ends_trials_of_the_strategy_it_ranks(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    found = {one["strategy"]: one for one in whole[1]}
    assert found["raw"]["proxy"]["validated"]
    assert found["raw"]["proxy"]["rank_correlation"] == pytest.approx(1)
    assert [t["status"] for t in found["raw"]["trials"][:4]] == ["measured"] * 4
    assert "stopped" in [t["status"] for t in found["raw"]["trials"]]
    # The proxy knows nothing of capability, so it does not rank usable harm.
    sure = found["random"]["proxy"]
    assert sure["validated"] or sure["stopped"] == 0


def test_what_was_found_is_run_with_the_rest(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    manifest = read_json(whole[0] / "manifest.json")
    assert manifest["status"] == "complete"
    labels = [attack["label"] for attack in manifest["settings"]["attacks"]]
    assert labels == [f"search-{s}-undefended" for s in ("constrained", "raw", "random")]
    assert "What attackers who tune their settings find" in (
        whole[0] / "report" / "report.html"
    ).read_text(encoding="utf-8")
    assert not list((whole[0] / "stages").glob("attack-*/checkpoint"))


def test_a_search_that_was_killed_goes_on_with_its_trials(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, not interrupted: nothing of it ends in good order, and nothing is done twice."""
    folder, done = tmp_path / "run", tmp_path / "trained"
    real = Harmful.__call__

    def noted(self: Harmful, checkpoint: Checkpoint, bench: Bench) -> Checkpoint:
        trained = done.read_text(encoding="utf-8").splitlines() if done.is_file() else []
        if os.getpid() != parent and len(trained) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        made = real(self, checkpoint, bench)
        with done.open("a", encoding="utf-8") as file:
            file.write(f"{self.training.learning_rate} {self.training.stop} {bench.seed}\n")
        return made

    monkeypatch.setattr(Harmful, "__call__", noted)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            search(experiment("raw"), folder, device="cpu", progress=Silent())
        finally:
            os._exit(0)  # it was not killed: the parent sees that
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert len(done.read_text(encoding="utf-8").splitlines()) == 5
    search(experiment("raw"), folder, device="cpu", progress=Silent())
    (one,) = read_json(folder / "search.json")["searches"]
    (as_whole,) = (one for one in whole[1] if one["strategy"] == "raw")
    for trials in (one["trials"], as_whole["trials"]):
        for trial in trials:
            del trial["seconds"]
    assert one["trials"] == as_whole["trials"]
    assert one["again"] == as_whole["again"]
    times = Counter(done.read_text(encoding="utf-8").splitlines())
    assert set(times.values()) == {1}


def test_the_verb_shows_both_numbers(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        """# Who finds more?
name: search
model: tiny:llama
seeds: [0]
data: {counts: {defense: 8, defender_harm: 0, attacker: 4, evaluation: 8, pool: 0, benign: 0, probe: 1}}
evaluations: [{name: harmfulness, encoder: hash, num_benign: 0, max_new_tokens: 2}]
verdict: {draws: 100}
confirm: {seeds: [7], prompts: 4}
search:
  attack: {name: harmful, shots: 4, training: {steps: 2, batch_size: 4}}
  flops: 1.0e+12
  trials: 2
  space: {training.learning_rate: [0.001]}
  proxy: null
""",
        encoding="utf-8",
    )
    command = ["search", str(file), "--out", str(tmp_path / "run"), "--progress", "none"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (one,) = read_json(tmp_path / "run" / "search.json")["searches"]
    # A random model says nothing harmful in two tokens, and without capability nothing is usable.
    assert [t["repeats"] for t in one["trials"]] == [None, 0]
    assert (one["best"], one["again"], one["label"]) == (None, None, None)
    assert one["trials"][0]["harm"] == 0.0
