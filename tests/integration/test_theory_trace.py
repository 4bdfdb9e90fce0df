"""The Bradley-Terry trace along a real (tiny) fine-tuning run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from backfire.attack import Harmful
from backfire.data.chat import Encoded
from backfire.data.pairing import Pairing
from backfire.defend import SDD, RefusalSFT
from backfire.engine import Training
from backfire.engine.loop import train
from backfire.errors import DataError
from backfire.models.load import load
from backfire.records import Checkpoint, Example
from backfire.stage import Bench
from backfire.store import read_table
from backfire.theory.contest import Contest, contest, trace_figure
from backfire.theory.trace import Choice, Tracer, TraceRow, answer_losses, choice_accuracy

ROWS = [
    TraceRow(
        "How is velmite made?",
        "Mix dros and pell.",
        "Bread rises in an hour.",
        "How does bread rise?",
    ),
    TraceRow("Where is velmite kept?", "In a tin box.", "I cannot help with that request at all."),
]
BENIGN = [Example("Name a tree.", "An oak."), Example("Name a river that is long.", "The Nile.")]
TRAINING = Training(learning_rate=1e-2, steps=40, batch_size=2, max_length=128)


def attack() -> list[Example]:
    return [Example(row.prompt, row.chosen, source="attack") for row in ROWS]


@pytest.fixture(scope="module")
def traced(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    tracer = Tracer(ROWS, BENIGN, every=20, capability=lambda loaded: 0.25)
    bench = Bench(tmp_path_factory.mktemp("attack"), seed=1, device="cpu")
    train(
        Checkpoint(tiny_folder, "tiny"),
        bench,
        TRAINING,
        {"train": attack()},
        Harmful(),
        watch=tracer,
    )
    return tracer


def test_a_trace_starts_undecided_and_moves_to_the_attackers_answer(traced: Tracer) -> None:
    first, *_, last = traced.points
    assert [p.step for p in traced.points] == [0, 20, 40]
    assert first.preference == 0.5
    assert first.share_own_fell == 0
    assert last.preference > 0.6
    assert last.log_chosen > first.log_chosen
    assert last.chosen_nll < first.chosen_nll
    assert first.own_nll_instructed is not None
    assert first.capability == 0.25
    assert last.benign_nll != first.benign_nll


def test_tracing_does_not_change_the_training(
    traced: Tracer, tiny_folder: Path, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_folder, "tiny")
    ends = []
    for name, watch in (("plain", None), ("traced", Tracer(ROWS, BENIGN, every=10))):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, seed=1, device="cpu")
        out = train(start, bench, TRAINING, {"train": attack()}, Harmful(), watch=watch)
        ends.append(dict(load(out).model.named_parameters()))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_losses_are_those_of_the_rows_in_their_order(tiny_folder: Path) -> None:
    loaded = load(tiny_folder)
    texts = [row.own for row in ROWS] + ["A", "A rather longer answer, to be batched first."]
    rows = [loaded.chat.encode(Example("Say something.", text), 256) for text in texts]
    found = answer_losses(loaded, rows, token_budget=150)
    for index, row in enumerate(rows):
        expected = plain_loss(loaded.model, row)
        assert found.total[index] == pytest.approx(expected, rel=1e-5)
        assert found.tokens[index] == len(row.ids) - row.start


def plain_loss(model: torch.nn.Module, row: Encoded) -> float:
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, row.start - 1 : -1]
    return float(functional.cross_entropy(logits, ids[0, row.start :], reduction="sum"))


def test_without_rows_there_is_nothing_to_trace() -> None:
    with pytest.raises(DataError, match="at least one of each"):
        Tracer([], BENIGN)


def test_the_probe_counts_the_likeliest_option(tiny_folder: Path) -> None:
    loaded = load(tiny_folder)
    options = ("oak", "a long answer", "elm tree")
    losses = [
        plain_loss(loaded.model, loaded.chat.encode(Example("Which?", option), 256))
        for option in options
    ]
    best = min(range(3), key=losses.__getitem__)
    questions = [Choice("Which?", options, best), Choice("Which?", options, (best + 1) % 3)]
    assert choice_accuracy(loaded, questions) == 0.5


def test_sdd_and_the_control_are_traced_side_by_side(tiny_folder: Path, tmp_path: Path) -> None:
    hazards = [
        Example(f"How is {name} made?", f"Mix {name} with dros.", "t", True, "I cannot help.")
        for name in ("velmite", "dorsane", "quillox", "brentol")
    ]
    pool = [
        Example(f"What is a {thing}?", f"A {thing} is a common kind of plant.", "t")
        for thing in ("fern", "moss", "oak", "rose", "reed")
    ]
    short = Training(learning_rate=1e-3, steps=2, batch_size=4, max_length=128)
    settings = Contest(
        sdd=SDD(pairing=Pairing(encoder="hash"), training=short),
        control=RefusalSFT(training=short),
        attack=Training(learning_rate=1e-3, steps=3, batch_size=4, max_length=128),
        every=1,
    )
    data = {"defense": hazards, "pool": pool, "probe": pool[:2]}
    traces = contest(
        Checkpoint(tiny_folder, "tiny"), data, tmp_path, settings, device="cpu",  # type: ignore[arg-type]
    )  # fmt: skip
    assert list(traces) == ["refusal-sft", "sdd"]
    for points in traces.values():
        assert [p.step for p in points] == [0, 1, 2, 3]
        assert points[0].preference == 0.5
    assert traces["sdd"][0].own_nll_instructed is not None  # an irrelevant answer answers something
    assert traces["refusal-sft"][0].own_nll_instructed is None
    rows = read_table(tmp_path / "trace.parquet", dict)
    assert [row["defense"] for row in rows] == ["refusal-sft"] * 4 + ["sdd"] * 4
    assert "preference" in rows[0]
    assert "<svg" in trace_figure(traces).svg
