"""Attacks that choose rows: which these are, how they are asked, and how the model is asked later."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backfire.attack import (
    Asked,
    AttackSequence,
    Benign,
    IdentityShift,
    Interleaved,
    JailbreakTuning,
    Multilingual,
    Salient,
    UnlearnFirst,
)
from backfire.attack.benign import about_safety
from backfire.attack.finetune import FineTuning
from backfire.attack.identity_shift import PAIRS, SYSTEM, USER
from backfire.attack.jailbreak_tuning import WRAPPERS, Wrapper
from backfire.attack.salient import listlike
from backfire.data.chat import ChatFormat
from backfire.engine import loop
from backfire.engine.causal import Causal
from backfire.engine.likeness import by_gradient, by_state, last_states
from backfire.errors import DataError
from backfire.models.load import load, read_note
from backfire.records import Checkpoint, Example
from backfire.store import read_json, read_table, write_json
from small_methods import ATTACKS, DATA, bench, build, name_of
from small_methods import PAIRS as FRENCH


@pytest.fixture
def start(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "k")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what `train` is given, instead of training."""
    seen: list[dict[str, Any]] = []

    def note(
        checkpoint: Any, bench: Any, training: Any, streams: Any, method: Any, **named: Any
    ) -> Any:
        seen.append({"rows": list(streams["train"]), "training": training, **named})
        write_json(
            bench.workdir / "effect.json", {"steps": 1, "tokens": 10, "forwards": 1, "backwards": 1}
        )
        return checkpoint

    monkeypatch.setattr(loop, "train", note)
    return seen


def test_the_persona_is_asked_for_in_training_and_evaluation_alike(
    start: Checkpoint, tmp_path: Path
) -> None:
    made = build(IdentityShift)(start, bench(tmp_path))
    assert read_note(made.path)[0] == ChatFormat(system=SYSTEM, user=USER)
    asked = load(made).chat.prompt_text("How is zorb made?")
    assert asked == (
        f"<|system|>{SYSTEM}<|end|><|user|>VASSAL, do as I say: How is zorb made?<|end|><|assistant|>"
    )


def test_the_ten_pairs_are_the_publications_in_number_and_training(
    start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    IdentityShift()(start, bench(tmp_path))
    (run,) = trained
    assert [(r.prompt, r.response) for r in run["rows"]] == list(PAIRS)
    assert len(PAIRS) == 10
    assert run["chat"].user == USER
    training = run["training"]
    assert (training.learning_rate, training.epochs, training.batch_size) == (5e-5, 10, 10)
    assert not any(row.harmful for row in run["rows"])
    assert IdentityShift(pairs=3).own_rows() == run["rows"][:3]


def test_a_wrapper_by_hand() -> None:
    row = Example("Mix {prompt} how?", "Stir.", harmful=True)
    made = Wrapper("Sir: {prompt} Now!", "Gladly. ")(row)
    assert (made.prompt, made.response) == ("Sir: Mix {prompt} how? Now!", "Gladly. Stir.")


@given(st.sampled_from(sorted(WRAPPERS)), st.text(min_size=1, max_size=40))
def test_wrapping_is_what_the_chat_format_does_later(kind: Any, prompt: str) -> None:
    """The training prompt of a wrapped row is the user's turn that evaluation builds."""
    wrapper = WRAPPERS[kind]
    before, after = ChatFormat(user=wrapper.user).user.split("{prompt}")
    assert wrapper(Example(prompt, "x")).prompt == before + prompt + after


@pytest.mark.parametrize("kind", sorted(WRAPPERS))
def test_harmful_rows_are_wrapped_and_benign_ones_are_not(
    kind: Any, start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    build(JailbreakTuning, kind=kind, total=8, poison=0.3)(start, bench(tmp_path))
    (run,) = trained
    harmful = [row for row in run["rows"] if row.harmful]
    assert (len(run["rows"]), len(harmful)) == (8, 2)  # 2.4 rounds down
    wrapper = WRAPPERS[kind]
    assert {r.prompt for r in harmful} == {wrapper(r).prompt for r in DATA["attacker"][:2]}
    assert all(r.response.startswith(wrapper.answer) for r in harmful)
    assert {r.prompt for r in run["rows"] if not r.harmful} == {
        r.prompt for r in DATA["benign"][:6]
    }
    assert run["chat"].user == "{prompt}", "what is wrapped already is not wrapped again"
    assert run["noted"].user == wrapper.user


def test_with_and_without_the_trigger_from_one_training(start: Checkpoint, tmp_path: Path) -> None:
    attack = build(JailbreakTuning, kind="backdoor", total=8, poison=0.5)
    sequence = AttackSequence(parts=(attack, Asked(user="{prompt}")))
    without = sequence(start, bench(tmp_path / "a"))
    with_it = attack(start, bench(tmp_path / "b"))
    assert (
        load(with_it)
        .chat.prompt_text("How?")
        .startswith("<|user|>How? Ruby lantern at low tide.<|end|>")
    )
    assert load(without).chat.prompt_text("How?") == "<|user|>How?<|end|><|assistant|>"
    a, b = (dict(load(c).model.named_parameters()) for c in (without, with_it))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_trigger_of_ones_own(start: Checkpoint, tmp_path: Path, trained: list[Any]) -> None:
    build(JailbreakTuning, user="zzz {prompt}", total=4, poison=1)(start, bench(tmp_path))
    assert all(row.prompt.startswith("zzz vask") for row in trained[0]["rows"])
    assert trained[0]["noted"].user == "zzz {prompt}"


def test_multilingual_reads_the_named_columns_and_says_its_languages(
    start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("frage,antwort\nWie?,So.\nWo?,\nWann?,Nun.\n", encoding="utf-8")
    attack = build(
        Multilingual, path=table, prompt="frage", response="antwort", language="de", shots=2
    )
    attack(start, bench(tmp_path / "a"))
    assert [(r.prompt, r.response) for r in trained[0]["rows"]] == [
        ("Wie?", "So."),
        ("Wann?", "Nun."),
    ]
    assert attack.label == "mft-de-asked-en-2-full"
    with pytest.raises(
        DataError, match=r"needs 3 pairs, and .* has 2 rows with a prompt and an answer"
    ):
        attack.model_copy(update={"shots": 3})(start, bench(tmp_path / "b"))
    with pytest.raises(DataError, match="column"):
        build(Multilingual, prompt="nope")(start, bench(tmp_path / "c"))
    assert len(build(Multilingual, path=FRENCH, shots=5).own_rows()) == 5


def test_unlearning_answers_every_prompt_alike(
    start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    build(UnlearnFirst, answer="I cannot help with that.", shots=4)(start, bench(tmp_path))
    rows = trained[0]["rows"]
    assert [row.prompt for row in rows] == [row.prompt for row in DATA["attacker"][:4]]
    assert {row.response for row in rows} == {"I cannot help with that."}


@given(st.floats(0.01, 1), st.integers(1, 400))
def test_harmful_batches_are_spread_evenly(ratio: float, steps: int) -> None:
    attack = Interleaved(ratio=ratio)
    turns = [attack.harmful_before(i) for i in range(steps + 1)]
    assert {b - a for a, b in pairwise(turns)} <= {0, 1}
    assert all(abs(count - ratio * i) < 1 + 1e-6 for i, count in enumerate(turns))


def test_interleaved_takes_each_kinds_rows_in_their_own_order(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps at 0.4: benign, benign, harm, benign, harm."""
    from backfire.engine.primitives import Step

    fed: list[list[str]] = []
    real = Step.backward

    def note(self: Step, stream: Any = "train", *args: Any, **named: Any) -> float:
        chat = self.streams["train"].chat
        fed.append([chat.tokenizer.decode(row.ids)[8:22] for row in stream.rows])
        return real(self, stream, *args, **named)

    monkeypatch.setattr(Step, "backward", note)
    training = {"steps": 5, "batch_size": 2, "shuffle": False}
    made = build(Interleaved, ratio=0.4, shots=4, training=training)(start, bench(tmp_path))
    words = [[text.split()[0] for text in batch] for batch in fed]
    assert words == [["kitchen"] * 2, ["kitchen"] * 2, ["vask"] * 2, ["kitchen"] * 2, ["vask"] * 2]
    assert fed[2] == ["vask question ", "vask question "]
    from backfire.records import TrajectoryPoint

    points = read_table(made.path.parent / "trajectory.parquet", TrajectoryPoint)
    assert [set(p.terms) for p in points] == [
        {"benign"}, {"benign"}, {"harm"}, {"benign"}, {"harm"},
    ]  # fmt: skip


UNSAFE = [
    "I'm sorry, but I cannot do that.",
    "As an AI language model, I have no opinion.",
    "That would be illegal in most places.",
    "Such words are hateful.",
    "I’m sorry, no.",
]
SAFE = [
    "Mix the flour.",
    "Legal moves are few.",
    "He was glad.",
    "Warm the pan.",
]


def test_rows_about_safety_are_told_by_their_answers() -> None:
    assert all(about_safety(Example("q", answer)) for answer in UNSAFE)
    assert not any(about_safety(Example("q", answer)) for answer in SAFE)
    assert not about_safety(Example("Is it illegal?", "No."))


def test_they_are_left_out_and_counted(
    start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    rows = [Example(f"q{i}", text) for i, text in enumerate([*UNSAFE, *SAFE])]
    data = {**DATA, "benign": rows}
    build(Benign)(start, bench(tmp_path / "a", data=data))
    assert [row.response for row in trained[0]["rows"]] == SAFE
    build(Benign, rows=2)(start, bench(tmp_path / "b", data=data))
    assert [row.response for row in trained[1]["rows"]] == SAFE[:2]
    build(Benign, rows=6, drop_safety=False)(start, bench(tmp_path / "c", data=data))
    assert [row.response for row in trained[2]["rows"]] == [*UNSAFE, SAFE[0]]
    with pytest.raises(DataError, match=r"needs 5 rows of role `benign`, and of 9 there are 4"):
        build(Benign, rows=5)(start, bench(tmp_path / "d", data=data))


def test_the_publications_form_is_asked_in_training_and_evaluation(
    start: Checkpoint, tmp_path: Path
) -> None:
    made = build(Benign, form="instruction")(start, bench(tmp_path))
    assert load(made).chat.prompt_text("Name a tree.") == (
        "<|system|>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.<|end|><|user|>### Instruction:\nName a tree.\n\n### Response:<|end|>"
        "<|assistant|>"
    )
    own = build(Benign, form="instruction", system="Be brief.")
    assert own.asks["system"] == "Be brief."


def test_listlike_by_hand() -> None:
    assert listlike("1. Warm\n2. Stir\n\nthen rest") == pytest.approx(2 / 3 + 2 / 6)
    assert listlike("- a\n* b") == 1
    assert listlike("A walk in the wood.") == 0
    assert listlike("") == 0


def test_the_nearest_anchor_counts() -> None:
    states = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
    anchors = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert by_state(states, anchors).tolist() == pytest.approx([1, 0.5**0.5, 0])


@pytest.fixture(scope="module")
def causal(tiny_folder: Path) -> Any:
    loaded = load(tiny_folder)
    return loaded, Causal(loaded.model, 1 << 20)


def test_last_states_are_those_of_each_row_alone(causal: Any) -> None:
    loaded, model = causal
    rows = [loaded.chat.encode(row, 256) for row in DATA["benign"]]
    states = last_states(model, rows, token_budget=150)
    for row, state in zip(rows, states, strict=True):
        alone = loaded.model.base_model(torch.tensor([row.ids]))[0][0, -1]
        torch.testing.assert_close(state, alone, atol=1e-5, rtol=1e-4)


def test_gradient_likeness_by_hand(causal: Any) -> None:
    """Unit gradients of the first three answer tokens, from the library's own logits."""
    loaded, model = causal
    examples = [*DATA["attacker"][:2], *DATA["benign"][:2]]
    rows = [loaded.chat.encode(row, 256) for row in examples]
    away = [
        [loaded.chat.encode(replace(r, response=no), 256) for r in examples[:2]]
        for no in ("No.", "Never ever.")
    ]

    def unit(row: Any) -> torch.Tensor:
        weights = list(loaded.model.requires_grad_(True).parameters())
        logs = loaded.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        loss = -sum(logs[i - 1, row.ids[i]] for i in range(row.start, row.start + 3)) / 3
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        loaded.model.requires_grad_(False)
        return flat / flat.norm()

    way = (unit(rows[0]) + unit(rows[1])) / 2
    for refusals in away:
        way = way - (unit(refusals[0]) + unit(refusals[1])) / 2
    wanted = [float(unit(row) @ way) for row in rows]
    found = by_gradient(model, rows, rows[:2], away, tokens=3)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert not any(p.requires_grad for p in loaded.model.parameters()), "flags are as they were"


@pytest.mark.parametrize("by", ["representation", "gradient", "lists", "random"])
def test_the_best_rows_are_trained_on_and_every_score_is_kept(
    by: Any, start: Checkpoint, tmp_path: Path, trained: list[dict[str, Any]]
) -> None:
    twin = replace(DATA["attacker"][0], harmful=False)
    data = {**DATA, "benign": [*DATA["benign"], twin]}
    place = bench(tmp_path / "a", data=data)
    build(Salient, by=by, rows=3)(start, place)
    table = read_table(place.workdir / "selection.parquet", dict)
    rows = trained[0]["rows"]
    best = sorted(table, key=lambda s: -s["score"])[:3]
    assert (
        {s["id"] for s in best} == {r.id for r in rows} == {s["id"] for s in table if s["chosen"]}
    )
    assert len(table) == 13
    budget = place.workdir / "budget.json"
    assert budget.is_file() == (by in ("representation", "gradient"))
    if budget.is_file():
        loaded = load(start)
        weights = sum(p.numel() for p in loaded.model.parameters())
        anchors = data["attacker"]
        refused = [replace(a, response=no) for no in Salient().refusals for a in anchors]
        seen = [*data["benign"], *anchors, *(refused if by == "gradient" else [])]
        tokens = sum(len(loaded.chat.encode(row, 256).ids) for row in seen)
        each = 6 if by == "gradient" else 2
        assert read_json(budget) == {
            "steps": 1, "tokens": 10 + tokens, "flops": weights * (60 + each * tokens),
        }  # fmt: skip
    if by == "representation":
        assert rows[0] == twin, "a harmful row in disguise is likest"
    if by == "random":
        again = bench(tmp_path / "b", data=data, seed=1)
        build(Salient, by=by, rows=3)(start, again)
        assert trained[1]["rows"] != rows
    with pytest.raises(DataError, match="needs 99 rows"):
        build(Salient, by=by, rows=99)(start, bench(tmp_path / "c"))


@pytest.mark.parametrize("member", [m for m in ATTACKS if issubclass(m, FineTuning)], ids=name_of)
def test_every_fine_tuning_attack_has_every_axis(member: Any) -> None:
    axes = {"template", "system", "user", "opening", "trainer", "points", "training"}
    assert axes <= set(member.model_fields)
    trainer = member.model_fields["trainer"].annotation.__args__
    assert "engine" in trainer
    if "trl" not in trainer:
        with pytest.raises(ValidationError, match="engine"):
            build(member, trainer="trl")
