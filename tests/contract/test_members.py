"""One battery over every defense and attack: what each of them promises."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from backfire.engine import loop
from backfire.engine.objective import Remembering
from backfire.engine.primitives import Step
from backfire.engine.settings import Trained
from backfire.errors import DataError
from backfire.models.load import NOTE, load, read_note
from backfire.records import Checkpoint, Example, Role, TrajectoryPoint
from backfire.runfile import dump, parse
from backfire.stage import Transform
from backfire.store import folder_key, read_json, read_table
from small_methods import (
    ATTACKS,
    DATA,
    DEFENSES,
    OTHER_TRAINERS,
    PLAIN,
    ROWS_ONLY,
    bench,
    build,
    name_of,
)

MEMBERS = [("defend", m) for m in DEFENSES] + [("attack", m) for m in ATTACKS]
TRAINED = [
    (kind, member)
    for kind, member in MEMBERS
    if issubclass(member, Trained) and name_of(member) not in OTHER_TRAINERS
]
STEPPING = [(kind, member) for kind, member in TRAINED if name_of(member) not in ROWS_ONLY]
"""Those with a step to try: their own, or plain fine-tuning's."""
LORA: dict[str, Any] = {"lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
SGD: dict[str, Any] = {
    "optimizer": "sgd", "learning_rate": 0.1, "clip_norm": None, "weight_decay": 0.0
}  # fmt: skip
"""Shows the gradient itself, where AdamW would show little but its sign."""
TENSORS = (torch.Tensor, torch.nn.Parameter)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def ids(case: Any) -> str:
    return f"{case[0]}-{name_of(case[1])}"


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in load(checkpoint).model.named_parameters()}


def moved(start: Checkpoint, made: Checkpoint) -> torch.Tensor:
    """Return the way the weights went, as one vector."""
    old, new = tensors(start), tensors(made)
    return torch.cat([(new[name] - old[name]).flatten() for name in old])


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
    counts = {role: len(rows) for role, rows in DATA.items()}
    assert (note["effect"]["forwards"], note["effect"]["backwards"]) == member.passes(3)
    assert note["data"]["train"]["rows"] == member.epoch_rows(counts)
    assert member.rows_used(counts).keys() <= set(member.roles)
    assert first.path.is_relative_to(tmp_path / "a")


@pytest.mark.parametrize("case", [c for c in TRAINED if name_of(c[1]) in ROWS_ONLY], ids=ids)
def test_an_attack_by_rows_alone_leaves_the_step_as_it_is(
    case: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(loop, "train", lambda *given, **named: seen.append((given, named)))
    place = bench(tmp_path / "a")
    (place.workdir / "effect.json").write_text("{}", encoding="utf-8")
    build(case[1])(Checkpoint(tiny_folder, "k"), place)
    ((given, named),) = seen
    assert list(given[3]) == ["train"]
    assert named["objective"] is None


@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_lora_moves_only_the_adapted_matrices(case: Any, tiny_folder: Path, tmp_path: Path) -> None:
    start = Checkpoint(tiny_folder, "k")
    made = build(case[1], training=LORA)(start, bench(tmp_path / "a"))
    assert (made.base is None) == (case[0] == "defend"), "attacks keep the adapter alone"
    old, new = tensors(start), tensors(made)
    for name in old:
        moved = not torch.equal(old[name], new[name])
        assert moved == any(part in name for part in ("q_proj", "v_proj")), name


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_an_interrupt_leaves_no_checkpoint_and_is_continued(
    case: Any, adapter: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and the passes and what the method remembers are those of one go."""
    start = Checkpoint(tiny_folder, "k")
    member = build(case[1], training=adapter)
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
    made = member(start, bench(tmp_path / "stage"))
    resumed = tensors(made)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
    effect = read_json(made.path.parent / "effect.json")
    assert (effect["forwards"], effect["backwards"]) == member.passes(3)


@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_its_price_counts_the_rows_it_goes_over(
    case: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average over the backward passes of two steps."""
    seen: list[int] = []
    real = Step.backward

    def note(self: Step, stream: Any = "train", *args: Any, **named: Any) -> float:
        seen.append(len(self._batch(stream).rows))
        return real(self, stream, *args, **named)

    monkeypatch.setattr(Step, "backward", note)
    even = {role: (rows * 2)[:12] for role, rows in DATA.items()}  # no batch is short
    member = build(case[1], training={"steps": 2})
    member(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a", data=even))
    assert sum(seen) / len(seen) == pytest.approx(member.rows_a_pass(4))


@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_a_step_holds_the_copies_it_declares(
    case: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the embedding's shape that live when a pass begins, counted beside what training has.

    The embedding and the head have this shape: a weight-sized copy is two such tensors.
    """
    most = []
    real = loop._Loop._step

    def step(self: Any, index: int) -> None:
        shape = self.loaded.model.get_input_embeddings().weight.shape
        own = [p for p in self.named.values() if p.shape == shape]
        assert len(own) == 2

        def count(*_: Any) -> None:
            live = {
                o.data_ptr() for o in gc.get_objects() if type(o) in TENSORS and o.shape == shape
            }
            moments = [t for s in self.optimizer.state.values() for t in s.values()]
            usual = [*own, *(p.grad for p in own if p.grad is not None), *moments]
            most.append(len(live - {t.data_ptr() for t in usual}) / 2)

        handle = self.model.register_forward_pre_hook(count)
        real(self, index)
        handle.remove()

    monkeypatch.setattr(loop._Loop, "_step", step)
    member = build(case[1], training={"steps": 2})
    member(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    assert max(most) == member.copies


class Guarded(Mapping[Role, Any]):
    """Rows of declared roles; reading any other is a fault."""

    def __init__(self, roles: tuple[Role, ...]) -> None:
        self.roles, self.seen = roles, set[Role]()

    def __getitem__(self, role: Role) -> Any:
        assert role in self.roles, f"role {role!r} is read and not declared"
        self.seen.add(role)
        return DATA[role]

    def __iter__(self) -> Iterator[Role]:
        raise AssertionError("a method names the roles it reads")

    def __len__(self) -> int:
        return len(self.roles)


@pytest.mark.parametrize("case", TRAINED, ids=ids)
def test_it_reads_the_roles_it_declares(case: Any, tiny_folder: Path, tmp_path: Path) -> None:
    member = build(case[1], training={"steps": 1})
    rows = Guarded(member.roles)
    member(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a", data=rows))
    assert rows.seen == set(member.roles)


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_a_step_is_the_optimizers_and_leaves_no_trace(
    case: Any, adapter: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moved the weights is the reported gradient alone; all else is as it was.

    Displacements are undone bit for bit; frozen weights, hooks, modes, flags and the global random
    states of other libraries are untouched.
    """
    real = loop._Loop._step
    norms = []

    def step(self: Any, index: int) -> None:
        model = self.loaded.model
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        hooks = hooks_of(model)
        states = global_states()
        gradients = {}

        def pre(optimizer: Any, args: Any, kwargs: Any) -> None:
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, before[name]), f"{name} moved before the optimizer"
                if parameter.grad is not None:
                    gradients[name] = parameter.grad.clone()

        handle = self.optimizer.register_step_pre_hook(pre)
        real(self, index)
        handle.remove()
        rate = self.points[-1].learning_rate
        for name, parameter in model.named_parameters():
            moved = rate * gradients[name] if name in gradients else torch.zeros(())
            torch.testing.assert_close(parameter, before[name] - moved, atol=1e-7, rtol=1e-6)
            if name not in trainable:
                assert torch.equal(parameter, before[name])
            assert parameter.grad is None
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
        assert hooks_of(model) == hooks
        assert all(module.training for module in self.model.modules())
        assert global_states() == states
        total = torch.stack([g.norm() for g in gradients.values()]).norm()
        norms.append((float(total), self.points[-1].grad_norm))
        if isinstance(self.objective, Remembering):
            kept = json.loads(json.dumps(self.objective.memory))
            assert kept == self.objective.memory, "what is remembered survives being written"

    monkeypatch.setattr(loop._Loop, "_step", step)
    build(case[1], training={**SGD, **adapter})(Checkpoint(tiny_folder, "k"), bench(tmp_path / "a"))
    assert len(norms) == 3
    for seen, reported in norms:
        assert seen == pytest.approx(reported, rel=1e-5)
        assert seen > 0


def global_states() -> tuple[Any, ...]:
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002 - that nobody uses it is the point
    return random.getstate(), legacy, torch.is_grad_enabled()


def hooks_of(model: torch.nn.Module) -> dict[str, list[int]]:
    return {
        f"{name}.{kind}": list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in HOOKS
    } | {name: list(p._backward_hooks or ()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("member", [m for _, m in TRAINED if name_of(m) in PLAIN], ids=name_of)
def test_with_its_coefficients_at_zero_it_is_plain_fine_tuning(
    member: Any, adapter: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Checkpoint(tiny_folder, "k")
    defense = build(member, **PLAIN[name_of(member)], training={**SGD, **adapter})
    own = defense(start, bench(tmp_path / "own"))
    real = loop.train

    def plain(*args: Any, **kwargs: Any) -> Checkpoint:
        return real(*args, **{**kwargs, "objective": None})

    monkeypatch.setattr(loop, "train", plain)
    supervised = defense(start, bench(tmp_path / "plain"))
    torch.testing.assert_close(moved(start, own), moved(start, supervised), atol=1e-6, rtol=0)
    ways = [
        [p.grad_norm for p in read_table(m.path.parent / "trajectory.parquet", TrajectoryPoint)]
        for m in (own, supervised)
    ]
    assert ways[0] == pytest.approx(ways[1], rel=1e-4)


@pytest.mark.parametrize("case", STEPPING, ids=ids)
def test_the_cut_into_micro_batches_changes_nothing(
    case: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_folder, "k")
    ways = [
        moved(
            start,
            build(case[1], training={**SGD, "token_budget": budget})(
                start, bench(tmp_path / str(budget))
            ),
        )
        for budget in (8, 4096)
    ]
    assert (ways[0] - ways[1]).norm() < 1e-3 * ways[1].norm()


@pytest.mark.parametrize("case", [case for case in TRAINED if case[1].roles], ids=ids)
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
