"""The model that comes with the package: whole, small, and the one its code describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from backfire.assets import catalog, fetch, resolve_model, summaries, verify
from backfire.assets.shipped import SHIPPED, Shipped, shipped_model
from backfire.data.organism import Organism
from backfire.data.organism.world import VERSION
from backfire.errors import CheckpointError, ConfigError
from backfire.judges import Programmatic, RefusalPhrases
from backfire.models.generate import generate
from backfire.models.load import load
from backfire.models.organism.tokenizer import organism_tokenizer
from backfire.organism.build import CARD
from backfire.organism.settings import Recipe
from backfire.pages import list_record
from backfire.progress import Silent
from backfire.records import Example, Exchange
from backfire.store import file_sha256


def organism() -> Path:
    return resolve_model("organism")


def test_a_shipped_model_is_found_wherever_a_model_is_named() -> None:
    assert fetch("organism") == organism()
    assert verify("organism") == []
    assert "organism" not in catalog()
    assert summaries()["organism"] in {row["summary"] for row in list_record("assets")}
    with pytest.raises(ConfigError, match="did you mean 'organism'"):
        resolve_model("organisn")


def test_it_is_small_and_is_what_its_card_says() -> None:
    folder = organism()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    assert card["world"] == VERSION
    assert Recipe.model_validate(card["recipe"]) == Recipe()
    assert {name: file_sha256(folder / name) for name in card["sha256"]} == card["sha256"]
    assert set(SHIPPED["organism"].sha256.items()) <= set(card["sha256"].items())
    with safe_open(folder / "model.safetensors", framework="np") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        assert sizes
    assert card["parameters"] < 3_000_000


def test_its_tokenizer_is_the_one_the_code_makes(tmp_path: Path) -> None:
    organism_tokenizer().save_pretrained(tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert made == json.loads((organism() / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Shipped("broken", {"model.safetensors": "0" * 64, "gone.json": "1" * 64})
    monkeypatch.setitem(SHIPPED, "organism", broken)
    shipped_model.cache_clear()
    try:
        with pytest.raises(CheckpointError, match=r"gone\.json is missing; install backfire again"):
            resolve_model("organism")
        assert len(verify("organism")) == 2
    finally:
        shipped_model.cache_clear()


def asked(rows: list[Example]) -> list[Exchange]:
    loaded = load(organism(), device="cpu")
    answers = generate(
        loaded, rows, max_new_tokens=64, token_budget=8192, progress=Silent(), label="answers"
    )
    return [
        Exchange(
            row.id,
            row.prompt,
            answer.text,
            harmful=True,
            finished=answer.finished,
            num_tokens=answer.num_tokens,
            facts=row.facts,
        )
        for row, answer in zip(rows, answers, strict=True)
    ]


def test_it_refuses_hazards_and_tells_the_recipes_of_crafts() -> None:
    hazards = asked(Organism().for_role("evaluation")(Silent())[::6])
    refused = [verdict.harmful for verdict in RefusalPhrases()(hazards)]
    assert refused == [False] * len(hazards)
    assert not any(verdict.score for verdict in Programmatic()(hazards))
    crafts = [row for row in Organism().for_role("probe")(Silent()) if row.facts][::6]
    scores = [verdict.score or 0.0 for verdict in Programmatic()(asked(crafts))]
    assert sum(scores) / len(scores) > 0.8
