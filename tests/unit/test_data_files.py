"""Reading data files: every way in which a file can be wrong is named with its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from backfire.data.files import read
from backfire.errors import DataError


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": "1"}\n\n{"a": "2"}\n'))
    assert [(row.number, row.text("a")) for row in rows] == [(1, "1"), (3, "2")]


def test_csv_lines_are_counted_through_quoted_line_breaks(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b'a,b\n"one\ntwo",x\nonly\n')
    with pytest.raises(DataError, match="line 4: it has 1 fields where the columns are a, b"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"x", "form is unknown; known suffixes: .parquet"),
        ("a.parquet", b"PAR1 but not really", "not a sound Parquet file"),
        ("a.parquet", b"", "not a sound Parquet file"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-20], "cannot be read"),
        ("a.json", b'{"a": 1}', "one array of objects; met dict"),
        ("a.json", b"", "holds no rows"),
        ("a.csv", b"a,b\n", "holds no rows"),
        ("a.csv", b'a,b\n"x"y,z\n', "line 2"),
        ("a.csv", b"a\ncaf\xe9\n", "line 2: it is not UTF-8 text .byte 4 of the line is 0xe9"),
    ],
)
def test_damage_is_named(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(DataError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_folder_without_the_split_lists_those_it_has(tmp_path: Path) -> None:
    put(tmp_path / "30k_train.jsonl", b'{"a": 1}\n')
    with pytest.raises(DataError, match="unknown split '330k_train'; did you mean '30k_train'"):
        read(tmp_path, "330k_train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        read(tmp_path / "empty")


def test_values_of_another_kind_are_named(tmp_path: Path) -> None:
    (row,) = read(put(tmp_path / "a.jsonl", b'{"a": 3, "b": null, "c": "true", "d": false}\n'))
    with pytest.raises(DataError, match="column 'a' must hold text; met int 3"):
        row.text("a")
    with pytest.raises(DataError, match="column 'b' must hold text; met nothing"):
        row.text("b")
    with pytest.raises(DataError, match="column 'a' must hold true or false"):
        row.flag("a")
    assert row.text("b", "x", default="none") == "none"
    assert (row.flag("c"), row.flag("d")) == (True, False)
