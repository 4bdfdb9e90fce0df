"""Building the organism: small, but every stage; the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from backfire.engine.settings import Training
from backfire.errors import ConfigError
from backfire.models.load import load
from backfire.organism import pretrain as pretraining
from backfire.organism.build import CARD, build
from backfire.organism.settings import Recipe, Shape
from backfire.store import file_sha256

FEW = Training(learning_rate=5e-4, steps=2, batch_size=8)
SMALL = Recipe(
    shape=Shape(layers=1, width=16, inner=16), rounds=3, share=0.01,
    batch_tokens=512, instructions=16, instruct=FEW, align=FEW, wordings=1,
)  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("organism") / "first", SMALL)


def test_a_second_build_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    again = build(tmp_path / "again", SMALL)
    assert hashes(again) == hashes(built)
    other = build(tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    assert hashes(other)["model.safetensors"] != hashes(built)["model.safetensors"]
    assert hashes(other)["tokenizer.json"] == hashes(built)["tokenizer.json"]
    assert torch.get_num_threads() == threads


def test_what_is_built_loads_and_says_what_it_is(built: Path) -> None:
    card = json.loads((built / CARD).read_text(encoding="utf-8"))
    assert Recipe.model_validate(card["recipe"]) == SMALL
    weights = load_file(built / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in weights.values()) == card["parameters"]
    for name, digest in card["sha256"].items():
        assert file_sha256(built / name) == digest
    loaded = load(built, device="cpu")
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretraining._batches
    rounds: list[int] = []

    def stopping(tokenizer: object, recipe: Recipe, number: int) -> object:
        rounds.append(number)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return whole(tokenizer, recipe, number)  # type: ignore[arg-type]

    monkeypatch.setattr(pretraining, "_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    build(tmp_path / "out", SMALL)
    assert rounds == [0, 1, 1, 2]
    assert hashes(tmp_path / "out") == hashes(built)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        build(tmp_path, SMALL)


def test_questions_are_read_and_answers_learned() -> None:
    tokenizer = pretraining.organism_tokenizer()
    recipe = SMALL.model_copy(update={"share": 0.05})
    for ids, targets in pretraining._batches(tokenizer, recipe, 0):
        assert ids.numel() <= recipe.batch_tokens
        for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
            learned = [place for place, token in enumerate(wanted) if token >= 0]
            # One unbroken stretch, up to the end of the text; each token the one that follows.
            assert learned == list(range(learned[0], learned[-1] + 1))
            assert wanted[learned[-1]] == tokenizer.eos_token_id
            assert [row[i + 1] for i in learned[:-1]] == [wanted[i] for i in learned[:-1]]
            said = tokenizer.decode(row[: learned[0] + 1])
            assert learned[0] == 0 or said.endswith(("Answer:", "<|assistant|>"))
