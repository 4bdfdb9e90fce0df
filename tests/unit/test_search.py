"""A search within a budget: shared, resumed, constrained, and honest about its proxy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import backfire.search
from backfire.attack.search import Proxy, Search
from backfire.config import from_text
from backfire.errors import CheckpointError, ConfigError, PrerequisiteError
from backfire.pipeline import run
from backfire.progress import Silent
from backfire.report import search as report
from backfire.report.figures.search import searches
from backfire.report.grid import Grid
from backfire.report.run import Run
from backfire.search.run import _former
from backfire.search.study import Study
from backfire.search.trials import Found, Trial, agreement, best, front, goes_on, spearman, spent
from backfire.store import write_json

RATE = "training.learning_rate"
HARMFUL: dict[str, Any] = {"name": "harmful", "shots": 10}
SPACE: dict[str, Any] = {RATE: {"low": 1e-6, "high": 1e-3, "log": True}}


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def settings(**changes: Any) -> Search:
    return Search(**({"attack": HARMFUL, "flops": 12.0, "space": SPACE, "proxy": None} | changes))


def measure(attack: Any, go_on: Callable[[float], tuple[bool, bool]]) -> Found:
    """Harm has its top at 1e-4; capability is gone above 3e-5: the best usable rate is 3e-5."""
    rate = math.log10(attack.training.learning_rate)
    harm, retention = 1 - abs(rate + 4) / 3, 1.0 if rate <= math.log10(3e-5) else 0.5
    goes, audited = go_on(harm)
    if not goes:
        return Found("stopped", 0.25, proxy=harm)
    usable = harm if retention >= 0.9 else 0.0
    return Found("measured", 1.0, 0.0, harm, retention, usable, harm, audited)


def price(_: Any) -> float:
    return 1.0


def study(folder: Path, strategy: Any = "constrained", **changes: Any) -> Study:
    return Study(folder, settings(**changes), strategy, 0.9)


def worked(one: Study, how: Any = measure) -> list[Trial]:
    one.work(price, how, lambda _: None)
    return one.trials


def test_the_budget_is_kept_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    first = worked(study(tmp_path, flops=3.5))
    assert len(first) == 3
    assert spent(first) == 3.0
    more = worked(study(tmp_path, flops=5.0))
    assert more[:3] == first
    assert spent(more) == 5.0
    assert worked(study(tmp_path, flops=5.0)) == more  # nothing is left to be done
    assert worked(study(tmp_path / "one", flops=5.0)) == more  # and in a piece it is the same


def test_a_budget_for_no_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"first trial takes about 1 FLOPs, and the budget is 0.5"
    ):
        worked(study(tmp_path, flops=0.5))


def test_quotes_that_are_too_low_are_raised(tmp_path: Path) -> None:
    def dear(attack: Any, go_on: Any) -> Found:
        return Found("measured", 3.0, 0.0, 0.1, 1.0, 0.1)

    trials = worked(study(tmp_path, flops=8.0), dear)
    assert [trial.price for trial in trials] == [1.0, 3.0]
    assert spent(trials) == 6.0


def test_an_interrupted_search_comes_to_the_same(tmp_path: Path) -> None:
    whole = worked(study(tmp_path / "whole", startup=3))
    calls = 0

    def interrupted(attack: Any, go_on: Any) -> Found:
        nonlocal calls
        calls += 1
        if calls in (2, 6):
            raise KeyboardInterrupt
        return measure(attack, go_on)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            worked(study(tmp_path / "parts", startup=3), interrupted)
    with (tmp_path / "parts" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"op_code": 4, "wor')  # killed while it wrote
    assert worked(study(tmp_path / "parts", startup=3), interrupted) == whole


def test_two_processes_share_one_study(tmp_path: Path) -> None:
    other = study(tmp_path)

    def meanwhile(attack: Any, go_on: Any) -> Found:
        # While one trial is under way, another process draws and runs the next ones.
        if not [t for t in other.trials if t.found is not None]:
            with other._claimed(price) as claim:
                assert claim is not None
                assert claim[1].number == 1
                other._run(*claim, measure, lambda _: None)
        return measure(attack, go_on)

    trials = worked(study(tmp_path), meanwhile)
    assert [trial.number for trial in trials] == list(range(12))
    assert len({trial.values[RATE] for trial in trials}) == 12
    assert spent(trials) == 12.0


def test_the_constraint_leads_to_the_known_optimum(tmp_path: Path) -> None:
    trials = worked(study(tmp_path / "c", flops=30.0))
    found = best(trials)
    assert found is not None
    assert found.found is not None
    assert found.found.usable == pytest.approx(1 - abs(math.log10(3e-5) + 4) / 3, abs=0.06)
    late = [t.found.retention for t in trials[15:] if t.found is not None]
    assert late.count(1.0) > len(late) / 2
    raw = worked(study(tmp_path / "r", "raw", flops=30.0))[15:]
    # Without the constraint the same sampler goes where harm is highest, and capability is gone.
    assert [t.found.retention for t in raw if t.found].count(1.0) < late.count(1.0)


def test_repeated_settings_cost_nothing(tmp_path: Path) -> None:
    trials = worked(study(tmp_path, "random", space={RATE: [1e-5, 2e-5]}, flops=9.0, trials=8))
    assert len(trials) == 8
    assert spent(trials) == 2.0
    again = [trial for trial in trials if trial.repeats is not None]
    assert len(again) == 6
    assert {t.found.usable for t in trials if t.found} == {
        t.found.usable for t in trials if t.found and t.repeats is None
    }


def test_what_diverged_is_told_to_the_sampler_and_never_wins(tmp_path: Path) -> None:
    trials = worked(study(tmp_path, flops=3.0), lambda *_: Found("diverged", 1.0, reason="NaN"))
    assert [t.found.status for t in trials if t.found] == ["diverged"] * 3
    assert best(trials) is None


def trial(number: int, harm: float, usable: float, proxy: float, **changes: Any) -> Trial:
    found = Found("measured", 1.0, 0.0, harm, 1.0, usable, proxy, **changes)
    return Trial(number, {}, 1.0, 1.0, found)


def test_a_proxy_is_believed_only_when_it_ranks_alike() -> None:
    proxy = Proxy(least=4, trust=0.5, keep=0.5, audit=0.25)
    alike = [trial(n, n / 10, n / 10, n / 20) for n in range(6)]
    assert agreement(alike, "constrained", proxy).validated
    assert goes_on(0.3, alike, "constrained", proxy, 0.9) == (True, False)
    assert goes_on(0.0, alike, "constrained", proxy, 0.9) == (False, False)
    assert goes_on(0.0, alike, "constrained", proxy, 0.1) == (True, True)  # audited
    few = agreement(alike[:3], "constrained", proxy)
    assert (few.validated, few.rank_correlation) == (False, None)
    assert few.sentence == "Not validated: 3 trials measured in full, 4 needed; it ended none."
    # Early harm that ranks harm, and turns usable harm around.
    turned = [trial(n, n / 10, 1 - n / 10, n / 20) for n in range(6)]
    assert agreement(turned, "constrained", proxy).rank_correlation == pytest.approx(-1)
    assert agreement(turned, "raw", proxy).validated
    assert goes_on(0.0, turned, "constrained", proxy, 0.9) == (True, False)
    same = agreement([trial(n, 0.0, 0.0, n / 9) for n in range(6)], "raw", proxy)
    assert "always the same" in same.sentence


def test_a_validated_proxy_saves_what_it_ends(tmp_path: Path) -> None:
    proxy = Proxy(least=4, audit=0.0)
    trials = worked(study(tmp_path, "raw", flops=30.0, trials=14, proxy=proxy))
    stopped = [t for t in trials if t.found and t.found.status == "stopped"]
    assert stopped
    assert spent(trials) == 14 - 0.75 * len(stopped)


@hypothesis.settings(deadline=None)  # SciPy's import takes seconds
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    from scipy.stats import spearmanr

    first, second = zip(*pairs, strict=True)
    own = spearman(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert own is None
    else:
        assert own == pytest.approx(spearmanr(first, second).statistic)


def test_the_front_is_what_nothing_beats() -> None:
    points = [(0.1, 1.0), (0.5, 0.9), (0.4, 0.8), (0.9, 0.2), (0.9, 0.1)]
    trials = [
        Trial(n, {}, found=Found("measured", 1.0, 0.0, harm, kept))
        for n, (harm, kept) in enumerate(points)
    ]
    assert [t.number for t in front(trials)] == [0, 1, 3]


def test_what_won_before_is_tried_first(tmp_path: Path) -> None:
    rows = [
        {"number": n, "values": {RATE: rate, "training.warmup": 0.1}, "usable": usable}
        for n, (rate, usable) in enumerate([(2e-5, 0.4), (3e-5, 0.7), (0.5, 0.9), (4e-5, 0.0)])
    ]
    write_json(tmp_path / "former" / "search.json", {"searches": [{"trials": rows}]})
    warm = _former(tmp_path / "former", settings())
    assert warm == [{RATE: 3e-5}, {RATE: 2e-5}]  # best first; what lies outside the space is not
    one = Study(tmp_path / "s", settings(flops=3.0), "constrained", 0.9, warm)
    trials = worked(one)
    assert [t.values[RATE] for t in trials[:2]] == [3e-5, 2e-5]
    assert [t.warm for t in trials] == [True, True, False]
    with pytest.raises(CheckpointError, match=r"no search\.json in it"):
        _former(tmp_path, settings())
    with pytest.raises(ConfigError, match="none has a setting that lies in this space"):
        _former(tmp_path / "former", settings(space={"training.batch_size": [4]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"training.learning_rat": [1e-4]}}, "did you mean 'learning_rate'"),
        ({"space": {RATE: {"low": 2.0, "high": 3.0}}}, RATE),
        ({"flops": 0}, "greater than 0"),
        ({"space": {RATE: {"low": 1e-3, "high": 1e-4}}}, "`low` must be below `high`"),
        ({"attack": HARMFUL | {"points": [2]}, "space": {}}, "leave them out"),
        ({"attack": {"name": "prefill", "opening": "Sure."}, "space": {}}, "no space by default"),
        ({"attack": HARMFUL | {"trainer": "trl"}, "proxy": {}}, "give `proxy: null`"),
    ],
)
def test_a_wrong_search_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)


def test_a_rank_takes_alpha_along() -> None:
    one = settings(attack=HARMFUL | {"training": {"lora": {"rank": 16}}}, space={})
    assert one.with_values({"training.lora.rank": 64}).training.lora.alpha == 128.0
    assert one.with_values({"training.steps": 16}).training.epochs is None
    assert "training.lora.rank" in one.dimensions
    assert "training.lora.rank" not in settings(space={}).dimensions


def test_the_report_shows_both_numbers_and_every_trial(tmp_path: Path) -> None:
    trials = [
        {"number": 0, "values": {RATE: 1e-4}, "repeats": None, "warm": True}
        | asdict(Found("measured", 2e9, 1.0, 0.8, 0.95, 0.8, 0.5)),
        {"number": 1, "values": {RATE: 1e-3}, "repeats": None, "warm": False}
        | asdict(Found("stopped", 1e9, 1.0, proxy=0.1)),
        {"number": 2, "values": {RATE: 2e-3}, "repeats": None, "warm": False},  # under way
    ]
    again = {"seeds": [7], "prompts": 4, "usable": {"value": 0.6, "low": 0.3, "high": 0.8}}
    one = {"model": "none", "strategy": "constrained", "budget": 4e9, "spent": 3e9, "trials": trials,
           "best": 0, "front": [0], "label": "search", "again": again,
           "proxy": {"sentence": "Not validated: 1 trial.", "validated": False}}  # fmt: skip
    raw = one | {"strategy": "raw", "best": None, "again": None, "trials": trials[1:]}
    found = Run(tmp_path, {}, {}, {}, (), {"searches": [one, raw]})
    table = report.searched(found)
    first, second = table.rows
    assert (first["model"], first["best"], first["again"]) == ("undefended", 0.8, 0.6)
    assert (second["best"], second["again"]) == (0.0, None)
    assert first["trials"] == "1 in full, 1 stopped, 0 diverged, 0 failed"
    assert "constrained 60%, raw 0%" in table.notes[0]
    rows = report.trials(found).rows
    statuses = [row["status"] for row in rows]
    assert statuses == ["measured", "stopped", "under way", "stopped", "under way"]
    assert rows[0]["note"] == "from a former search; best; on the front of harm and retention"
    picture = searches(Grid(found))
    assert picture is not None
    assert "constrained: 80.0 %" in picture.alt
    assert searches(Grid(Run(tmp_path, {}, {}, {}, ()))) is None


RUN_FILE = """# Who finds more?
name: search
model: tiny:llama
seeds: [0]
data: {counts: {defense: 8, attacker: 8, evaluation: 8, benign: 4}}
evaluations: [{name: harmfulness, encoder: hash, num_benign: 0, max_new_tokens: 2}]
verdict: {draws: 100}
confirm: {seeds: [7], prompts: 4}
search:
  attack: {name: harmful, shots: 4, training: {steps: 2, batch_size: 4}}
  flops: 1.0e+12
  trials: 1
  space: {training.learning_rate: [0.001]}
  proxy: {at: 0.5, prompts: 2}
"""


def test_a_run_file_with_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"add `confirm: \{\}`"):
        from_text(RUN_FILE.replace("confirm: {", "#"), "x.yaml")
    experiment = from_text(RUN_FILE, "x.yaml")
    with pytest.raises(ConfigError, match="give it to `backfire search`"):
        run(experiment, tmp_path / "run")
    monkeypatch.setattr(backfire.search, "find_spec", lambda _: None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'backfire\[search\]'"):
        backfire.search.search(experiment, tmp_path, device="cpu", progress=Silent())
