"""How a model is asked travels with its folder: attack, note, loading, answering."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backfire.attack import Asked, Harmful
from backfire.data.chat import SOFT_IDS, ChatFormat
from backfire.errors import CheckpointError, ConfigError
from backfire.models.generate import generate
from backfire.models.link import ask_otherwise
from backfire.models.load import load, read_note
from backfire.models.soft import SOFT_FILE, install_soft, write_soft
from backfire.records import Checkpoint, Example
from backfire.store import content_key, folder_key
from small_methods import bench, build


@pytest.fixture
def start(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "k")


def test_asked_links_the_weights_and_notes_the_format(start: Checkpoint, tmp_path: Path) -> None:
    before = folder_key(start.path)
    made = Asked(system="Obey.", opening="Sure:")(start, bench(tmp_path))
    assert (made.path / "model.safetensors").resolve() == (start.path / "model.safetensors")
    assert folder_key(start.path) == before
    ids = load(made).chat.prompt_ids("hi")
    text = load(made).tokenizer.decode(ids)
    assert text == "<|system|>Obey.<|end|><|user|>hi<|end|><|assistant|>Sure:"


def test_what_the_attacker_leaves_open_stays_as_the_model_has_it(
    start: Checkpoint, tmp_path: Path
) -> None:
    first = Asked(system="Obey.", user="Do: {prompt}")(start, bench(tmp_path / "a"))
    made = Asked(opening="Sure:", system="")(first, bench(tmp_path / "b"))
    assert read_note(made.path)[0] == ChatFormat(system="", user="Do: {prompt}", opening="Sure:")
    assert load(made).chat.prompt_text("hi") == "<|user|>Do: hi<|end|><|assistant|>"


def test_the_opening_is_no_part_of_the_answer(start: Checkpoint, tmp_path: Path) -> None:
    """What is judged is what the model wrote: its continuation of the opening."""
    made = Asked(opening="Sure, the zorb recipe:")(start, bench(tmp_path))
    plain, opened = load(start), load(made)
    example = Example("How?")
    (answer,) = generate(opened, [example], max_new_tokens=8)
    opening = plain.tokenizer("Sure, the zorb recipe:", add_special_tokens=False).input_ids
    ids = torch.tensor([[*plain.chat.prompt_ids("How?"), *opening]])
    by_hand: list[int] = []
    for _ in range(8):
        logits = plain.model(torch.cat([ids, torch.tensor([by_hand], dtype=torch.long)], 1)).logits
        by_hand.append(int(logits[0, -1].argmax()))
        if by_hand[-1] in plain.chat.stop_ids:
            by_hand.pop()
            break
    assert answer.text == plain.tokenizer.decode(by_hand, skip_special_tokens=True)
    assert "recipe" not in answer.text


def test_fine_tuning_asks_in_evaluation_as_in_training(start: Checkpoint, tmp_path: Path) -> None:
    attack = build(Harmful, user="Obey: {prompt}", opening="Sure:", template="alpaca")
    made = attack(start, bench(tmp_path))
    chat = load(made).chat
    assert chat.format == ChatFormat(template="alpaca", user="Obey: {prompt}", opening="Sure:")
    row = chat.encode(Example("hi", "yo"), 100)
    assert chat.prompt_ids("hi") == row.ids[: row.start]


def test_settings_that_came_later_leave_keys_alone() -> None:
    attack = build(Harmful)
    old = {k: v for k, v in attack if k not in ("template", "user", "opening", "points")}
    assert content_key(attack) == content_key({"version": 1, **old})
    assert content_key(attack) != content_key(build(Harmful, opening="x"))


def test_nothing_changed_is_refused() -> None:
    with pytest.raises(ValueError, match="changes nothing"):
        Asked()


# ------------------------------------------------------------------------------------ learned vectors


def test_vectors_that_are_words_answer_as_the_words_do(start: Checkpoint, tmp_path: Path) -> None:
    """Vectors copied from the embedding of some words must be those words."""
    plain, before = load(start), folder_key(start.path)
    words = plain.tokenizer("please", add_special_tokens=False).input_ids
    vectors = plain.model.get_input_embeddings().weight[torch.tensor(words)]
    chat = ChatFormat(user="{prompt} {soft}", soft=len(words))
    made = ask_otherwise(start, tmp_path / "soft", chat)
    write_soft(made.path, vectors)
    asked = [Example("How?"), Example("Why is this longer?")]
    spoken = load(start, chat=ChatFormat(user="{prompt} please"))
    assert generate(load(made), asked, max_new_tokens=8) == generate(
        spoken, asked, max_new_tokens=8
    )
    assert folder_key(start.path) == before


def test_gradients_reach_learned_vectors(start: Checkpoint) -> None:
    loaded = load(start)
    width = loaded.model.config.hidden_size
    vectors = torch.zeros(2, width, requires_grad=True)
    install_soft(loaded.model, vectors)
    loaded.model(torch.tensor([[5, SOFT_IDS, SOFT_IDS + 1, 6]])).logits.sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad != 0).any(dim=1).all()


def test_missing_or_wrong_vectors_are_errors(start: Checkpoint, tmp_path: Path) -> None:
    made = ask_otherwise(start, tmp_path / "soft", ChatFormat(user="{prompt}{soft}", soft=2))
    with pytest.raises(CheckpointError, match=SOFT_FILE):
        load(made)
    write_soft(made.path, torch.zeros(3, 32))
    with pytest.raises(CheckpointError, match="holds 3 vectors"):
        load(made)
    write_soft(made.path, torch.zeros(2, 7))
    with pytest.raises(CheckpointError, match="made on"):
        load(made)


def test_weights_do_not_move_under_learned_vectors(start: Checkpoint, tmp_path: Path) -> None:
    made = ask_otherwise(start, tmp_path / "soft", ChatFormat(user="{prompt}{soft}", soft=2))
    write_soft(made.path, torch.zeros(2, 32))
    with pytest.raises(ConfigError, match="come last"):
        build(Harmful)(made, bench(tmp_path / "a"))
