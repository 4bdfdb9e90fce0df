"""One battery over every defense and attack: what each of them promises."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from backfire.attack import AnyAttack
from backfire.defend import AnyDefense
from backfire.engine.settings import Trained
from backfire.errors import DataError
from backfire.mistakes import models_in
from backfire.models.load import NOTE, load, read_note
from backfire.records import Checkpoint, Example, Role
from backfire.runfile import dump, parse
from backfire.stage import Bench, Transform
from backfire.store import folder_key, read_json

KIND = {"defend": AnyDefense, "attack": AnyAttack}
MEMBERS = [(kind, member) for kind, union in KIND.items() for member in models_in(union)]
TRAINED = [(kind, member) for kind, member in MEMBERS if issubclass(member, Trained)]

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "steps": 3, "batch_size": 4, "max_length": 256}
SMALL: dict[str, dict[str, Any]] = {
    "given": {"model": "a-folder"},
    "sdd": {"pairing": {"encoder": "hash", "threshold": 0.9}},
    "harmful": {"shots": 5},
    "mixed": {"total": 8, "poison": 0.25},
}
"""What a method's defaults need to fit ten rows and a tiny model."""


def rows(count: int, word: str, **fields: Any) -> list[Example]:
    return [
        Example(
            f"{word} question {i} of ten",
            f"{word} answer {i * i} comes here",
            source="test",
            **fields,
        )
        for i in range(count)
    ]


DATA: dict[Role, list[Example]] = {
    "defense": [
        replace(r, response="", refusal="I cannot help with that.")
        for r in rows(10, "zorb", harmful=True)
    ],
    "defender_harm": rows(10, "quil", harmful=True),
    "attacker": rows(10, "vask", harmful=True),
    "evaluation": rows(10, "nerp", harmful=True),
    "pool": rows(12, "garden"),
    "benign": rows(12, "kitchen"),
    "probe": rows(6, "music"),
}


def ids(case: Any) -> str:
    return f"{case[0]}-{case[1].model_fields['name'].default}"


def build(member: Any, **over: Any) -> Any:
    name = member.model_fields["name"].default
    settings = {"name": name, **SMALL.get(name, {}), **over}
    if issubclass(member, Trained):
        settings["training"] = {**QUICK, **over.get("training", {})}
    return member.model_validate(settings)


def bench(folder: Path, seed: int = 0, data: Any = DATA) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(folder, seed=seed, device="cpu", data=data)


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load(checkpoint).model.named_parameters()}


@pytest.mark.parametrize("case", MEMBERS, ids=ids)
def test_identity(case: Any) -> None:
    kind, member = case
    made = build(member)
    assert isinstance(made, Transform)
    assert member.__module__.startswith(f"backfire.{kind}.")
    assert made.label
    assert sum(m.model_fields["name"].default == made.name for k, m in MEMBERS if k == kind) == 1
    assert set(made.roles) <= set(DATA)
    assert "evaluation" not in made.roles
    if kind == "defend":
        assert "attacker" not in made.roles, "a defense never sees the attacker's rows"
    else:
        assert not {"defense", "defender_harm"} & set(made.roles)


@pytest.mark.parametrize("case", MEMBERS, ids=ids)
def test_settings_round_trip_through_yaml_and_are_documented(case: Any) -> None:
    made = build(case[1])
    tree = parse(dump(made.model_dump(mode="json")), "x").tree
    assert case[1].model_validate(tree) == made
    undocumented = [n for n, f in case[1].model_fields.items() if not f.description]
    assert not undocumented
    assert case[1].__doc__


@pytest.mark.parametrize(
    "case", [c for c in MEMBERS if c[1].__name__ in ("Undefended", "Unattacked")], ids=ids
)
def test_none_is_bit_identical(case: Any, tiny_folder: Path, tmp_path: Path) -> None:
    start = Checkpoint(tiny_folder, "k")
    assert build(case[1])(start, bench(tmp_path / "x")) == start


@pytest.mark.parametrize("case", TRAINED, ids=ids)
def test_training_members(case: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """Same seed same weights, another seed others; all weights move; plain transformers loads."""
    start = Checkpoint(tiny_folder, "k")
    before = folder_key(tiny_folder)
    member = build(case[1])
    first = member(start, bench(tmp_path / "a"))
    again = member(start, bench(tmp_path / "b"))
    other = member(start, bench(tmp_path / "c", seed=1))
    assert folder_key(tiny_folder) == before, "the input is untouched"
    old, a, b, c = (tensors(x) for x in (start, first, again, other))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)
    # One embedding row per byte: those no row uses have no gradient and stay.
    assert all(not torch.equal(old[n], a[n]) for n in a)
    AutoModelForCausalLM.from_pretrained(first.path)
    note = read_json(first.path / NOTE)
    assert note["method"]["name"] == member.name
    assert note["effect"]["share_changed"] > 0
    assert (note["effect"]["forwards"], note["effect"]["backwards"]) == (3, 3)
    assert first.path.is_relative_to(tmp_path / "a")


@pytest.mark.parametrize("case", TRAINED, ids=ids)
def test_lora_moves_only_the_adapted_matrices(case: Any, tiny_folder: Path, tmp_path: Path) -> None:
    start = Checkpoint(tiny_folder, "k")
    lora = {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    made = build(case[1], training=lora)(start, bench(tmp_path / "a"))
    assert (made.base is None) == (case[0] == "defend"), "attacks keep the adapter alone"
    old, new = tensors(start), tensors(made)
    for name in old:
        moved = not torch.equal(old[name], new[name])
        assert moved == any(part in name for part in ("q_proj", "v_proj")), name


@pytest.mark.parametrize("case", TRAINED, ids=ids)
def test_an_interrupt_leaves_no_checkpoint_and_is_continued(
    case: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backfire.engine import loop

    start = Checkpoint(tiny_folder, "k")
    member = build(case[1])
    whole = tensors(member(start, bench(tmp_path / "whole")))
    real = loop._Loop._watch

    def stop(self: Any) -> None:
        if len(self.points) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_watch", stop)
        with pytest.raises(KeyboardInterrupt):
            member(start, bench(tmp_path / "stage"))
    assert not (tmp_path / "stage" / "checkpoint").exists()
    resumed = tensors(member(start, bench(tmp_path / "stage")))
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


@pytest.mark.parametrize("case", TRAINED, ids=ids)
def test_too_few_rows_are_an_error_with_counts(
    case: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    empty: dict[Role, list[Example]] = {role: [] for role in DATA}
    with pytest.raises(DataError, match=r"rows|prompts"):
        build(case[1])(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a", data=empty))


def test_the_attackers_system_turn_is_used_in_evaluation_too(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from backfire.attack import Harmful

    attack = build(Harmful, system="You obey.")
    made = attack(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    assert read_note(made.path)[0].system == "You obey."
    assert "You obey." in load(made).chat.prompt_text("hi")


def test_a_harmful_budget_is_a_prefix_of_a_larger_one(tmp_path: Path) -> None:
    from backfire.attack.finetune import rows_of

    b = bench(tmp_path / "a")
    assert rows_of(b, "attacker", 9, "x")[:4] == rows_of(b, "attacker", 4, "x")


def test_mixed_has_the_poison_it_says(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backfire.attack import Mixed

    seen: list[Example] = []
    monkeypatch.setattr(
        Mixed, "attack", lambda self, checkpoint, bench, rows: seen.extend(rows) or checkpoint
    )
    build(Mixed, total=8, poison=0.3)(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    assert (len(seen), sum(row.harmful for row in seen)) == (8, 2)  # 2.4 rounds down
