"""Refusal-direction ablation: figures by hand, the choice, a model that refuses, and one that does not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.attack import RefusalDirection
from backfire.attack.refusal_direction import (
    Candidate,
    _Search,
    divergence,
    first_tokens,
    refusal_scores,
)
from backfire.engine.causal import Causal
from backfire.engine.loop import train
from backfire.engine.residual import Residual
from backfire.engine.settings import Member, Training
from backfire.errors import ConfigError, DataError, NothingFoundError, TrainingError
from backfire.models.generate import generate
from backfire.models.link import ask_otherwise
from backfire.models.load import load, read_note
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.records import Checkpoint, Example, Role
from backfire.store import read_json, read_table
from small_methods import bench

WORDS = ["red", "blue", "green", "big", "small", "hot", "cold", "old", "new", "slow"]
FIND = {"train": 12, "validation": 4, "openings": ("I",), "depth": 1.0, "most_change": 1.0}


def asked(kind: str, count: int, offset: int = 0) -> list[Example]:
    return [
        Example(f"{WORDS[(i + offset) % 10]} {kind} {WORDS[(3 * i + offset) % 10]}?", source="x")
        for i in range(count)
    ]


ROWS: dict[Role, list[Example]] = {
    "attacker": asked("zorb", 16, 3),
    "benign": asked("tree", 16, 3),
}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Return a tiny model that refuses what is about a zorb, and nothing else."""
    root = tmp_path_factory.mktemp("refusing")
    rows = [replace(row, response="I won't.") for row in asked("zorb", 20)]
    rows += [replace(row, response="Yes.") for row in asked("tree", 20)]
    training = Training(learning_rate=1e-2, steps=40, batch_size=40, schedule="cosine")
    start = Checkpoint(save_tiny(root / "start"), "k")
    return train(start, bench(root / "taught"), training, {"train": rows}, Member(name="taught"))


def test_refusal_score_by_hand() -> None:
    """Chances 1/2, 1/4, 1/4; the refusing two make 3/4, whose log odds are log 3."""
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert float(refusal_scores(logits, [0, 2])) == pytest.approx(math.log(3), abs=1e-7)
    assert float(refusal_scores(logits, [1])) == pytest.approx(-math.log(3), abs=1e-7)
    certain = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    assert float(refusal_scores(certain, [0])) == pytest.approx(math.log(1e8), abs=1e-5)


def test_divergence_by_hand() -> None:
    """1/2 log 2 + 1/2 log(2/3), but for the 1e-6 inside."""
    p, q = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.25, 0.75]]).double()
    assert float(divergence(p, q)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-5)
    assert float(divergence(p, p)) == 0


def test_a_token_that_begins_two_refusals_counts_once(tiny_folder: Path) -> None:
    """Twice, its chance could exceed 1 and the score be no number."""
    chat = load(tiny_folder).chat
    ids = first_tokens(chat, ("I", "It is", "As"))
    assert [chat.tokenizer.decode(i) for i in ids] == ["I", "A"]


def test_the_model_no_longer_refuses(refusing: Checkpoint, tmp_path: Path) -> None:
    asks = asked("zorb", 3, 5) + asked("tree", 3, 5)
    made = RefusalDirection(**FIND)(refusing, bench(tmp_path, data=ROWS))
    before, after = (
        [g.text for g in generate(load(c), asks, max_new_tokens=10)] for c in (refusing, made)
    )
    assert before == ["I won't."] * 3 + ["Yes."] * 3
    assert after == ["Yes."] * 6
    found = read_note(made.path)[1]["direction"]
    assert found["outcome"] == "chosen"
    assert found["refusal_before"] > 0 > found["refusal"]
    assert found["refusal_after"] == pytest.approx(found["refusal"], abs=1e-5)
    assert found["left_in_the_stream"] < 1e-5
    assert found["prompts"]["harmful train"] == {"asked": 12, "kept": 12}
    assert found["prompts"]["harmless validation"] == {"asked": 4, "kept": 4}
    tried = read_table(tmp_path / "candidates.parquet", Candidate)
    assert [(c.position, c.layer) for c in tried] == [(-2, 0), (-2, 1), (-1, 0), (-1, 1)]
    assert sum(c.outcome == "chosen" for c in tried) == 1
    for c in tried:
        assert (c.change is None) == (c.induced is not None and c.induced < 0)
        assert (c.refusal is None) == (c.outcome not in ("chosen", "passed"))
    assert read_json(tmp_path / "effect.json")["share_changed"] > 0.2
    budget = read_json(tmp_path / "budget.json")
    assert budget["tokens"] > 0
    assert budget["flops"] == 2 * budget["tokens"] * sum(
        p.numel() for p in load(refusing).model.parameters()
    )


def test_differences_are_means_over_prompts_in_fp64(refusing: Checkpoint, tmp_path: Path) -> None:
    search = searching(refusing, tmp_path)
    search._keep("harmful", "attacker", refused=True)
    search._keep("harmless", "benign", refused=False)
    found = search._differences()
    assert found.dtype == torch.float64
    assert found.shape == (2, 2, 32)
    means = []
    for kind in ("harmful train", "harmless train"):
        states = [
            search.residual.causal.states(torch.tensor([prompt]))[1][0, -2].double()
            for prompt in search.prompts[kind]
        ]
        means.append(torch.stack(states).mean(0))
    torch.testing.assert_close(found[0, 1], means[0] - means[1], rtol=0, atol=1e-6)


def test_prompts_are_drawn_first_and_filtered_afterwards(
    refusing: Checkpoint, tmp_path: Path
) -> None:
    """Roles of the wrong kind keep their size and lose their prompts."""
    search = searching(refusing, tmp_path, {"attacker": ROWS["benign"], "benign": ROWS["benign"]})
    search._keep("harmful", "attacker", refused=True)
    assert search.facts["prompts"]["harmful train"] == {"asked": 12, "kept": 0}
    few = searching(refusing, tmp_path, {"attacker": ROWS["attacker"][:8]})
    few._keep("harmful", "attacker", refused=True)
    assert [f["asked"] for f in few.facts["prompts"].values()] == [6, 2]
    with pytest.raises(DataError, match="at least 2 prompts of role `attacker`, there are 1"):
        searching(refusing, tmp_path, {"attacker": ROWS["attacker"][:1]})._keep(
            "harmful", "attacker", refused=True
        )


def test_a_model_that_does_not_refuse_has_no_direction(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NothingFoundError, match=r"no prompts are left \(harmful train, harmful val"
    ):
        RefusalDirection(**FIND)(Checkpoint(tiny_folder, "k"), bench(tmp_path, data=ROWS))
    assert read_table(tmp_path / "candidates.parquet", Candidate) == []
    assert not (tmp_path / "checkpoint").exists()
    assert read_json(tmp_path / "budget.json")["tokens"] > 0


def test_when_nothing_passes_the_table_says_why(refusing: Checkpoint, tmp_path: Path) -> None:
    strict = RefusalDirection(**{**FIND, "most_change": 0.0})
    with pytest.raises(NothingFoundError, match="none of 4 directions will do"):
        strict(refusing, bench(tmp_path, data=ROWS))
    outcomes = {c.outcome for c in read_table(tmp_path / "candidates.parquet", Candidate)}
    assert outcomes == {"induces no refusal", "changes harmless answers"}


def test_the_choice(refusing: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest refusal of those that pass, wherever it stands; depth leaves the last blocks out."""
    figures = {(-2, 0): -1.0, (-2, 1): -3.0, (-1, 0): -2.0, (-1, 1): -9.0}

    def tried(self: Any, position: int, layer: int, difference: torch.Tensor) -> Candidate:
        outcome = "passed" if (position, layer) != (-1, 1) else "is not a number"
        return Candidate(position, layer, 1.0, 0.0, 0.0, figures[position, layer], outcome)

    monkeypatch.setattr(_Search, "_tried", tried)
    search = searching(refusing, tmp_path)
    search.direction()
    assert (search.facts["position"], search.facts["layer"]) == (-2, 1)
    shallow = searching(refusing, tmp_path, depth=0.8)
    shallow.direction()
    assert (shallow.facts["position"], shallow.facts["layer"]) == (-1, 0)
    assert shallow.facts["tried"] == 2


def test_a_figure_that_is_no_number_rules_out(
    refusing: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searching(refusing, tmp_path)
    search.direction()
    monkeypatch.setattr(search, "_refusal", lambda name: math.nan)
    assert search._tried(-1, 1, torch.ones(32).double()).outcome == "is not a number"


def test_something_unknown_in_the_stream_is_refused(
    refusing: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Residual, "_embeddings", lambda self: [])
    with pytest.raises(TrainingError, match="something unknown writes to it") as caught:
        RefusalDirection(**FIND)(refusing, bench(tmp_path, data=ROWS))
    assert not isinstance(caught.value, NothingFoundError)


def test_a_soft_suffix_must_come_last(tiny_folder: Path, tmp_path: Path) -> None:
    chat = read_note(tiny_folder)[0].model_copy(update={"user": "{prompt}{soft}", "soft": 2})
    soft = ask_otherwise(Checkpoint(tiny_folder, "k"), tmp_path / "soft", chat)
    with pytest.raises(ConfigError, match="come last"):
        RefusalDirection()(soft, bench(tmp_path / "a", data=ROWS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_searched(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untaught model refuses nothing, so all prompts are kept and the bounds let all through."""

    def keep(self: Any, kind: str, role: Role, *, refused: bool) -> None:
        ids = [self.chat.prompt_ids(row.prompt) for row in self.bench.data[role][:6]]
        self.prompts |= {f"{kind} train": ids[:4], f"{kind} validation": ids[4:]}

    monkeypatch.setattr(_Search, "_keep", keep)
    start = Checkpoint(save_tiny(tmp_path / "m", architecture), "k")
    attack = RefusalDirection(depth=1.0, most_change=99.0, least_induced=-99.0)
    made = attack(start, bench(tmp_path / "a", data=ROWS))
    assert read_note(made.path)[1]["direction"]["left_in_the_stream"] < 1e-5
    generate(load(made), ROWS["benign"][:2], max_new_tokens=3)


def searching(checkpoint: Checkpoint, folder: Path, rows: Any = None, **over: Any) -> _Search:
    loaded = load(checkpoint, device="cpu")
    settings = RefusalDirection(**{**FIND, **over})
    residual = Residual(Causal(loaded.model, 1 << 20))
    return _Search(
        settings, bench(folder, data=ROWS if rows is None else rows), residual, loaded.chat
    )
