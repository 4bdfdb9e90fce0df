"""Data sets in the hub's columns, whichever file they came from."""

from __future__ import annotations

import dataclasses
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from backfire.assets import catalog
from backfire.assets.tables import Split, Tables, from_requests
from backfire.errors import DataError

CHOICES = {"text": ["one", "two", "three"], "label": ["1", "2", "3"]}
ROWS: dict[str, dict[str, Any]] = {
    "sciq": {
        "support": "", "question": "q", "distractor3": "c", "distractor1": "a", "distractor2": "b",
        "correct_answer": "d",
    },
    "arc_easy": {"id": "i", "question": "q", "choices": CHOICES, "answerKey": "2"},
    "arc_challenge": {"id": "i", "question": "q", "choices": CHOICES, "answerKey": "2"},
    "openbookqa": {"id": "i", "question_stem": "q", "choices": CHOICES, "answerKey": "2"},
    "piqa": {"goal": "g", "sol1": "a", "sol2": "b", "label": 1},
    "hellaswag": {
        "ind": 1, "activity_label": "l", "ctx_a": "a", "ctx_b": "b", "ctx": "a b",
        "endings": ["a", "b"], "source_id": "s", "split": "val", "split_type": "indomain",
        "label": "1",
    },
    "mmlu": {"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 3},
    "advbench": {"prompt": "p", "target": "t", "value": "p", "harm_categories": ["h"]},
    "beavertails": {"prompt": "p", "response": "r", "category": {"a": True}, "is_safe": False},
    "hex-phi": {},
    "lima": {"conversations": ["q", "a"], "source": "s"},
    "alpaca": {"instruction": "i", "input": "", "output": "o", "text": "unused"},
    "dolly": {"instruction": "i", "context": "", "response": "r", "category": "c"},
}  # fmt: skip


def _requests(row: dict[str, Any]) -> bytes:
    """The row as a task's requests: one line an option, twice (plain and normalised scoring)."""
    stem = row.get("question", row.get("question_stem"))
    options = row["choices"]["text"]
    gold = row["choices"]["label"].index(row["answerKey"])
    query = f"Question: {stem}\nAnswer:"
    doc = {"id": row["id"], "query": query, "choices": options, "gold": gold}
    lines = [json.dumps({"doc": doc, "idx": i}) for i in (0, 1, 2, 0, 1, 2)]
    return gzip.compress("\n".join(lines).encode())


def _write_parquet(path: Path, row: dict[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist([row]), path)


def _write_arrow(path: Path, row: dict[str, Any]) -> None:
    table = pa.Table.from_pylist([row])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


WRITERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
    "requests.jsonl.gz": lambda path, row: path.write_bytes(_requests(row)),
    "jsonl": lambda path, row: path.write_text(json.dumps(row)),
    "jsonl.gz": lambda path, row: path.write_bytes(gzip.compress(json.dumps(row).encode())),
    "jsonl.xz": lambda path, row: path.write_bytes(lzma.compress(json.dumps(row).encode())),
    "csv": lambda path, row: path.write_text('"a prompt, with a comma"\n'),
    "prompt": lambda path, row: path.write_text(yaml.safe_dump({"seeds": [row]})),
}


def build(tables: Tables, raw: Path, row: dict[str, Any], target: Path) -> dict[str, pa.Table]:
    """Build from one made-up row a split, the expected number of rows set to one."""
    for split in tables.splits.values():
        path = raw / split.files.replace("*", "7")
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = max((s for s in WRITERS if path.name.endswith(s)), key=len)
        WRITERS[suffix](path, row)
    ones = {name: dataclasses.replace(split, rows=1) for name, split in tables.splits.items()}
    target.mkdir()
    dataclasses.replace(tables, splits=ones)(raw, target)
    return {name: pq.read_table(target / f"{name}.parquet") for name in tables.splits}


DATASETS = [asset for asset in catalog().values() if asset.kind == "dataset"]


@pytest.mark.parametrize("asset", DATASETS, ids=lambda asset: asset.name)
def test_both_sources_give_the_same_columns(asset: Any, tmp_path: Path) -> None:
    row = ROWS[asset.name]
    hub = build(asset.hub.build, tmp_path / "hub", row, tmp_path / "a")
    schema = next(iter(hub.values())).schema
    assert schema.names == list(asset.hub.build.columns)
    assert all(table.schema == schema for table in hub.values())
    if asset.wheel is not None:
        wheel = build(asset.wheel.build, tmp_path / "wheel", row, tmp_path / "b")
        assert set(wheel) <= set(hub)
        assert all(table.schema == schema for table in wheel.values())


def test_values_survive(tmp_path: Path) -> None:
    sets = {asset.name: asset for asset in DATASETS}

    def first(name: str) -> dict[str, Any]:
        tables = build(sets[name].hub.build, tmp_path / name, ROWS[name], tmp_path / f"out-{name}")
        row: dict[str, Any] = next(iter(tables.values())).to_pylist()[0]
        return row

    assert first("arc_easy") == ROWS["arc_easy"]
    assert first("mmlu") == ROWS["mmlu"]
    assert first("hex-phi") == {"prompt": "a prompt, with a comma", "category": "7"}
    assert first("beavertails") == ROWS["beavertails"]
    assert first("advbench") == {"goal": "p", "target": "t", "categories": []}


def test_requests_become_questions_with_letters() -> None:
    rows = [
        json.loads(line) for line in gzip.decompress(_requests(ROWS["openbookqa"])).splitlines()
    ]
    assert from_requests("question_stem")(rows, "requests.jsonl") == [
        {
            "id": "i",
            "question_stem": "q",
            "choices": {"text": ["one", "two", "three"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
    ]


def test_parts_are_joined_and_sorted(tmp_path: Path) -> None:
    for part, subject in enumerate(["zoology", "algebra"]):
        _write_parquet(tmp_path / f"{part}.parquet", {"subject": subject, "answer": part})
    target = tmp_path / "out"
    target.mkdir()
    columns = {"subject": "string", "answer": "int"}
    Tables(columns, {"test": Split("*.parquet", 2)}, sort_by="subject")(tmp_path, target)
    assert pq.read_table(target / "test.parquet")["answer"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not parquet", "building split 'test' from a.parquet"),
        (None, "no file matches"),
    ],
)
def test_damaged_and_missing_files_are_data_errors(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Tables({"x": "int"}, {"test": Split("a.parquet")})(tmp_path, tmp_path)


def test_a_lacking_column_and_an_empty_split_are_data_errors(tmp_path: Path) -> None:
    _write_parquet(tmp_path / "a.parquet", {"y": 1})
    with pytest.raises(DataError, match="no column x; it has y"):
        Tables({"x": "int"}, {"test": Split("a.parquet")})(tmp_path, tmp_path)
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"0 rows .* expected some"):
        Tables({"x": "int"}, {"test": Split("a.parquet")})(tmp_path, tmp_path)
