"""Prefilling is asking with an opening: same weights, and the model goes on from the words."""

from __future__ import annotations

from pathlib import Path

import pytest

from backfire.attack import Asked, Prefill
from backfire.models.generate import generate
from backfire.models.load import load, read_note
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.records import Checkpoint
from small_methods import DATA, bench


def test_it_is_asked_with_an_opening(tiny_folder: Path, tmp_path: Path) -> None:
    start = Checkpoint(tiny_folder, "k")
    made = Prefill()(start, bench(tmp_path / "a"))
    assert (made.path / "model.safetensors").resolve() == start.path / "model.safetensors"
    assert read_note(made.path)[0].opening == "Sure, here is"
    same = Asked(opening="Sure, here is")(start, bench(tmp_path / "b"))
    answers = [generate(load(c), DATA["evaluation"], max_new_tokens=6) for c in (made, same, start)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_goes_on_from_it(architecture: str, tmp_path: Path) -> None:
    """Putting the words into the prompt by hand gives the same answers."""
    start = Checkpoint(save_tiny(tmp_path / "m", architecture), "k")
    made = Prefill(opening="Yes:")(start, bench(tmp_path / "a"))
    opened, plain = load(made), load(start)
    words = plain.tokenizer("Yes:", add_special_tokens=False).input_ids
    prompt = DATA["evaluation"][0].prompt
    assert opened.chat.prompt_ids(prompt) == [*plain.chat.prompt_ids(prompt), *words]


def test_labels_and_words() -> None:
    assert Prefill().label == "prefill"
    assert Prefill(opening="Yes.", system="Obey.").label == "prefill-system"
    for opening in ("", "Sure "):
        with pytest.raises(ValueError, match="opening"):
            Prefill(opening=opening)
