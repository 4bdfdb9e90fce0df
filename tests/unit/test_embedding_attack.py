"""The embedding attack: frozen weights, signed steps, beginnings computed once, a suffix that travels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from backfire.attack import AttackSequence, Embedding, Prefill
from backfire.data.chat import SOFT_IDS, Chat
from backfire.engine.causal import Causal
from backfire.engine.suffix import SuffixLoss
from backfire.errors import ConfigError, DivergedError
from backfire.models.generate import generate
from backfire.models.load import load, read_note
from backfire.models.soft import install_soft, read_soft
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.records import Checkpoint, Example, TrajectoryPoint
from backfire.store import folder_key, read_json, read_table
from small_methods import DATA, bench, build


@pytest.fixture
def start(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "k")


def soft_loss(
    folder: Path, architecture: str, budget: int = 4096
) -> tuple[SuffixLoss, torch.Tensor]:
    """Return the loss of rows of different lengths on a new model, and its vectors."""
    loaded = load(save_tiny(folder, architecture), device="cpu")
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    chat = Chat(
        loaded.tokenizer,
        loaded.chat.format.model_copy(update={"user": "{prompt}{soft}", "soft": 3}),
    )
    rows = [chat.encode(row, 200) for row in DATA["attacker"][:5]]
    install_soft(loaded.model, vectors)
    return SuffixLoss(Causal(loaded.model, 1 << 20), rows, budget), vectors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beginnings_computed_once_change_no_loss_and_no_gradient(
    architecture: str, tmp_path: Path
) -> None:
    loss, vectors = soft_loss(tmp_path / "m", architecture)
    assert loss.shares
    kept, value = loss._kept, loss.backward()
    gradient, vectors.grad = vectors.grad, None
    again = loss.backward()  # the kept beginnings are as they were
    vectors.grad = None
    loss._kept = None
    plain = loss.backward()
    assert kept is not None
    assert value == again == pytest.approx(plain, rel=1e-5)
    assert gradient is not None
    assert vectors.grad is not None
    torch.testing.assert_close(gradient, vectors.grad, rtol=1e-3, atol=1e-6)
    assert loss.value() == pytest.approx(plain, rel=1e-5)


def test_the_cut_into_parts_changes_nothing(tmp_path: Path) -> None:
    one, _ = soft_loss(tmp_path / "a", "llama")
    many, _ = soft_loss(tmp_path / "b", "llama", budget=8)
    assert (len(one._parts), len(many._parts)) == (1, 5)
    assert one.value() == pytest.approx(many.value(), rel=1e-6)
    assert (one.tokens, one.supervised) == (many.tokens, many.supervised)


def test_a_cache_that_disagrees_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SuffixLoss._kept_of

    def broken(self: SuffixLoss, *args: object) -> object:
        kept = real(self, *args)  # type: ignore[arg-type]
        kept.cache.layers[0].values = kept.cache.layers[0].values + 1
        return kept

    monkeypatch.setattr(SuffixLoss, "_kept_of", broken)
    loss, _ = soft_loss(tmp_path / "m", "llama")
    assert not loss.shares
    assert math.isfinite(loss.value())


def test_weights_stay_and_the_loss_falls(start: Checkpoint, tmp_path: Path) -> None:
    before = folder_key(start.path)
    attack = Embedding(shots=4, steps=20, generations=3, every=2, learning_rate=0.01, length=5)
    made = attack(start, bench(tmp_path / "a"))
    assert folder_key(start.path) == before
    assert (made.path / "model.safetensors").resolve() == start.path / "model.safetensors"
    note = read_note(made.path)[1]["suffix"]
    points = read_table(tmp_path / "a" / "trajectory.parquet", TrajectoryPoint)
    losses = [p.loss for p in points]
    assert len(points) == 24
    assert note["step"] in (20, 22, 24)
    assert note["loss_after"] < note["loss_before"] == losses[0]
    # The loss after n steps is what step n + 1 begins with; the last one's is measured apart.
    chosen = {20: losses[20], 22: losses[22]} | {note["step"]: note["loss_after"]}
    assert note["loss_after"] == min(chosen.values())
    loaded = load(made)
    assert loaded.chat.prompt_ids("hi").count(SOFT_IDS + 4) == 1
    asked = [generate(load(c), DATA["evaluation"], max_new_tokens=6) for c in (made, start)]
    assert asked[0] != asked[1]
    budget = read_json(tmp_path / "a" / "budget.json")
    weights = sum(p.numel() for p in load(start).model.parameters())
    each = points[0].tokens
    assert budget == {"steps": 24, "tokens": 25 * each, "flops": 2 * weights * 49 * each}


def test_every_component_moves_by_the_rate(start: Checkpoint, tmp_path: Path) -> None:
    """One step from known vectors: the sign of the gradient of the loss of the attacker's words."""
    attack = Embedding(
        shots=1,
        steps=1,
        generations=1,
        learning_rate=0.5,
        start="ab",
        target="Sure",
        target_tokens=3,
    )
    made = attack(start, bench(tmp_path / "a"))
    plain = load(start)
    table = plain.model.get_input_embeddings().weight
    ids = plain.tokenizer("ab", add_special_tokens=False).input_ids
    vectors = table.detach()[torch.tensor(ids)].clone().requires_grad_()
    text = plain.chat.prompt_text(DATA["attacker"][0].prompt)
    head, tail = text.split("<|end|>")
    pieces = [
        plain.tokenizer(t, add_special_tokens=False).input_ids
        for t in (head, "<|end|>" + tail, "Sur")
    ]
    embedded = [table[torch.tensor(piece)] for piece in pieces]
    inputs = torch.cat([embedded[0], vectors, embedded[1], embedded[2]])[None]
    logits = plain.model(inputs_embeds=inputs).logits[0, -4:-1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(pieces[2])).backward()
    expected = vectors.detach() - 0.5 * vectors.grad.sign()
    torch.testing.assert_close(read_soft(made.path, 2), expected, rtol=0, atol=1e-6)


def test_zero_steps_is_the_model_as_it_came(start: Checkpoint, tmp_path: Path) -> None:
    assert Embedding(steps=0)(start, bench(tmp_path)) == start


def test_the_seed_draws_the_words_it_starts_from(start: Checkpoint, tmp_path: Path) -> None:
    attack = build(Embedding)
    made = [attack(start, bench(tmp_path / str(i), seed=i // 2)) for i in range(3)]
    first, again, other = (read_soft(m.path, 20) for m in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_goes_behind_what_the_attacker_asks_already(start: Checkpoint, tmp_path: Path) -> None:
    attack = AttackSequence(parts=(Prefill(user="Do: {prompt}!"), build(Embedding)))
    made = attack(start, bench(tmp_path / "a"))
    chat = read_note(made.path)[0]
    assert (chat.user, chat.soft, chat.opening) == ("Do: {prompt}!{soft}", 20, "Sure, here is")
    with pytest.raises(ConfigError, match="come last"):
        build(Embedding)(made, bench(tmp_path / "b"))


def test_an_end_of_the_answer_is_no_target(start: Checkpoint) -> None:
    chat = load(start).chat
    attack = Embedding(target_tokens=9)
    short = attack._row(chat, Example("hi", "yo"), 100)
    assert len(short.ids) - short.start == 2
    long = attack._row(chat, Example("hi", "y" * 30), 100)
    assert len(long.ids) - long.start == 9
    cut = attack._row(chat, Example("hi", "y" * 300), len(chat.prompt_ids("hi")) + 5)
    assert len(cut.ids) - cut.start == 5


def test_a_loss_that_is_no_number_is_a_result(
    start: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuffixLoss, "backward", lambda self: math.nan)
    with pytest.raises(DivergedError, match="step 1 of 6"):
        build(Embedding)(start, bench(tmp_path))
