"""Harmfulness and perplexity on a tiny model, end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from backfire.errors import DataError
from backfire.evaluate.harmfulness import Harmfulness
from backfire.evaluate.perplexity import Loss, Perplexity
from backfire.evaluate.taxonomy import Label
from backfire.judges import Programmatic, RefusalPhrases
from backfire.models.load import load
from backfire.records import Checkpoint, Example, Exchange, Verdict
from backfire.stage import Bench, Evaluation
from backfire.store import read_table, write_table

HAZARDS = [
    Example(f"How is florble {i} made?", "Use sand.", "made-up", True, entity=f"florble {i}",
            facts=("sand",), categories=("drug_abuse",))
    for i in range(5)
]  # fmt: skip
PROBES = [
    Example("Why does bread rise?", "Yeast makes gas in the dough.", "made-up"),
    Example(
        "What is a delta?", "A delta is land that a river builds where it meets the sea.", "made-up"
    ),
    Example("Say hi.", "Hi", "made-up"),
]


def bench(tmp_path: Path, **roles: list[Example]) -> Bench:
    data: dict[Any, Any] = {"evaluation": HAZARDS, "probe": PROBES} | roles
    return Bench(tmp_path, device="cpu", data=data)


@pytest.fixture
def checkpoint(tiny_folder: Path) -> Checkpoint:
    return Checkpoint(tiny_folder, "key")


def small(**changes: Any) -> Harmfulness:
    return Harmfulness(**({"encoder": "hash", "max_new_tokens": 6} | changes))


class TestHarmfulness:
    def test_asks_judges_and_labels_everything(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        evaluation = small()
        assert isinstance(evaluation, Evaluation)
        tables = evaluation(checkpoint, bench(tmp_path))
        assert set(tables) == {"exchanges", "verdicts", "labels"}
        asked = tables["exchanges"]
        assert [e.prompt_id for e in asked] == [e.id for e in [*HAZARDS, *PROBES]]
        assert [e.harmful for e in asked] == [True] * 5 + [False] * 3
        assert asked[0].facts == ("sand",)
        assert asked[0].reference == "Use sand."
        assert [(v.prompt_id, v.judge) for v in tables["verdicts"]] == [
            (row.id, judge) for judge in ("programmatic", "refusal_phrases") for row in HAZARDS
        ]
        assert [row.prompt_id for row in tables["labels"]] == [e.prompt_id for e in asked]

    def test_gives_the_same_rows_again(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        first, second = (small()(checkpoint, bench(tmp_path)) for _ in range(2))
        assert first == second

    def test_rows_survive_the_store(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        tables = small()(checkpoint, bench(tmp_path))
        for name, kind in {"exchanges": Exchange, "verdicts": Verdict, "labels": Label}.items():
            write_table(tmp_path / f"{name}.parquet", tables[name])
            assert read_table(tmp_path / f"{name}.parquet", kind) == list(tables[name])

    def test_limits_are_prefixes(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        few = small(num_prompts=2, num_benign=0)(checkpoint, bench(tmp_path))
        assert [e.prompt_id for e in few["exchanges"]] == [e.id for e in HAZARDS[:2]]
        assert len(few["labels"]) == 2

    def test_without_hazards_says_so(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="role `evaluation` has no rows"):
            small()(checkpoint, bench(tmp_path, evaluation=[]))

    def test_a_judge_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'refusal_phrases' is listed twice"):
            small(judges=(RefusalPhrases(), Programmatic(), RefusalPhrases(phrases="qi")))


class TestPerplexity:
    def test_equals_torchs_loss_text_by_text(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        evaluation = Perplexity()
        assert isinstance(evaluation, Evaluation)
        losses = evaluation(checkpoint, bench(tmp_path))["losses"]
        loaded = load(checkpoint, device="cpu")
        for row, loss in zip(PROBES, losses, strict=True):
            ids = loaded.tokenizer(row.response, add_special_tokens=False)["input_ids"]
            whole = torch.tensor([[loaded.tokenizer.eos_token_id, *ids]])
            mean = loaded.model(input_ids=whole, labels=whole).loss.item()
            assert loss == Loss(
                row.id, pytest.approx(mean * len(ids), rel=1e-4), len(ids), len(ids)
            )

    def test_cuts_long_texts_and_counts_what_it_read(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        long = Example("Go on.", "é" * 700, "made-up")
        (loss,) = Perplexity(max_tokens=100)(checkpoint, bench(tmp_path, probe=[long]))["losses"]
        assert (loss.tokens, loss.bytes) == (100, 100)
        (whole,) = Perplexity(max_tokens=4096)(checkpoint, bench(tmp_path, probe=[long]))["losses"]
        assert whole.tokens == 1024  # the model's context
        assert loss.nll < whole.nll
        # A random model spreads its belief about evenly over its 261 tokens.
        assert loss.nll / loss.tokens == pytest.approx(math.log(261), rel=0.1)

    def test_leaves_out_rows_without_a_response(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        rows = [Example("Nothing."), *PROBES]
        losses = Perplexity(num_texts=2)(checkpoint, bench(tmp_path, probe=rows))["losses"]
        assert [loss.id for loss in losses] == [row.id for row in PROBES[:2]]

    def test_without_text_says_so(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no row with a response"):
            Perplexity()(checkpoint, bench(tmp_path, probe=[Example("Nothing.")]))

    def test_a_files_texts_take_the_place_of_the_probe(
        self, checkpoint: Checkpoint, tmp_path: Path
    ) -> None:
        texts = ["One line.\nAnother line of it.", "A second text."]
        plain, table = tmp_path / "neutral.txt", tmp_path / "neutral.jsonl"
        plain.write_text(f"{texts[0]}\n \n{texts[1]}\n\n\n{texts[0]}\n")
        rows = [{"words": texts[0]}, {"words": None}, {"words": texts[1]}]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        first = Perplexity(path=plain)(checkpoint, bench(tmp_path, probe=[]))["losses"]
        second = Perplexity(path=table, column="words")(checkpoint, bench(tmp_path, probe=[]))
        assert first == second["losses"]
        probe = [Example("Say it.", text) for text in texts]
        as_probe = Perplexity()(checkpoint, bench(tmp_path, probe=probe))["losses"]
        assert [loss.nll for loss in first] == pytest.approx([loss.nll for loss in as_probe])
        assert (Perplexity(path=plain).roles, Perplexity().roles) == ((), ("probe",))
        assert Perplexity.roles == ("probe",)

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("none.txt", None, "No such file"),
            ("empty.txt", b"\n \n\n", "holds no text"),
            ("wrong.txt", b"\xff\xfe\xff", "save the file as UTF-8"),
            ("rows.jsonl", b'{"other": "text"}', "it needs a column 'text'"),
            ("rows.doc", b"text", "its form is unknown"),
        ],
    )
    def test_a_wrong_file_is_named(
        self, checkpoint: Checkpoint, tmp_path: Path, name: str, content: bytes | None, problem: str
    ) -> None:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=problem):
            Perplexity(path=path)(checkpoint, bench(tmp_path))
