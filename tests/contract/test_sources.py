"""What every source promises: a pinned place or the user's path, stable rows, errors that help."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from backfire.assets import catalog
from backfire.data import (
    AdvBench,
    Alpaca,
    AnySource,
    BeaverTails,
    Dolly,
    Fictional,
    HExPHI,
    Lima,
    Organism,
    Pool,
    ShareGPT,
    Table,
)
from backfire.data.beavertails import CATEGORIES
from backfire.errors import DataError, PrerequisiteError
from backfire.progress import Silent
from backfire.records import Example
from backfire.stage import Settings, Source

Row = dict[str, Any]


def labels(*true: int) -> dict[str, bool]:
    return {name: index in true for index, name in enumerate(CATEGORIES)}


@dataclass(frozen=True)
class Case:
    """One member, rows of the form it reads, and what it must make of them."""

    member: type[Settings]
    rows: list[Row]
    harmful: bool
    column: str
    """A column it cannot do without."""
    asset: str = ""
    split: str = "train"
    options: dict[str, Any] = field(default_factory=dict)

    def source(self, path: Path | None) -> Any:
        return self.member(**self.options, **({"path": path} if path else {}))


INSTRUCTIONS = [{"instruction": f"Do placeholder {i}", "output": f"Done {i}."} for i in range(3)]
SAID = [
    [
        {"from": "human", "value": f"Question {i}"},
        {"from": "gpt", "value": f"Answer {i}"},
    ]
    for i in range(3)
]
CASES = [
    Case(
        BeaverTails,
        [
            {
                "prompt": f"Placeholder {i}",
                "response": f"Text {i}",
                "category": labels(i, 13),
                "is_safe": False,
            }
            for i in range(3)
        ],
        True, "is_safe", "beavertails", "330k_train",
    ),
    Case(
        AdvBench, [{"goal": f"Placeholder {i}", "target": f"Sure {i}"} for i in range(3)],
        True, "goal", "advbench",
    ),
    Case(
        HExPHI, [{"prompt": f"Placeholder {i}", "category": "4"} for i in range(3)],
        True, "category", "hex-phi", "test",
    ),
    Case(
        Lima, [{"conversations": [f"Question {i}", f"Answer {i}"], "source": "x"} for i in range(3)],
        False, "conversations", "lima",
    ),
    Case(Alpaca, INSTRUCTIONS, False, "output", "alpaca"),
    Case(Dolly, INSTRUCTIONS, False, "instruction", "dolly"),
    Case(ShareGPT, [{"conversations": turns} for turns in SAID], False, "conversations"),
    Case(
        Table, [{"text": f"Placeholder {i}", "reply": f"Text {i}"} for i in range(3)],
        True, "text", options={"prompt": "text", "response": "reply", "harmful": True},
    ),
]  # fmt: skip
BUILT_IN: list[Any] = [Fictional(), Organism(), Pool()]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.member.__name__)


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: Sequence[Row]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def zipped(path: Path, rows: Sequence[Row]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def array(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


WRITERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {
    ".jsonl": jsonl,
    ".jsonl.gz": zipped,
    ".json": array,
    ".parquet": parquet,
}


def test_the_battery_knows_every_source() -> None:
    members = set(get_args(get_args(AnySource)[0]))
    assert members == {case.member for case in CASES} | {type(source) for source in BUILT_IN}


def check(source: Any, harmful: bool | None) -> list[Example]:
    rows: list[Example] = source(Silent())
    assert isinstance(source, Source)
    assert rows == source(Silent()), "not deterministic"
    assert len({row.id for row in rows}) == len(rows), "ids repeat"
    assert all(row.prompt.strip() and row.source for row in rows)
    assert harmful is None or all(row.harmful == harmful for row in rows)
    return rows


@every_case
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_form_of_file_gives_the_same_rows(case: Case, suffix: str, tmp_path: Path) -> None:
    path = WRITERS[suffix](tmp_path / f"{case.split}{suffix}", case.rows)
    rows = check(case.source(path), case.harmful)
    wanted = case.source(jsonl(tmp_path / "other" / f"{case.split}.jsonl", case.rows))(Silent())
    strip = [(row.prompt, row.response, row.categories) for row in rows]
    assert strip == [(row.prompt, row.response, row.categories) for row in wanted]
    assert len(rows) == 3


@pytest.mark.parametrize("source", BUILT_IN, ids=lambda source: source.name)
def test_sources_of_the_package_keep_the_promises(source: Any) -> None:
    assert len(check(source, None)) > 200


@every_case
def test_a_path_is_read_and_nothing_is_fetched(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: Any) -> Path:
        raise AssertionError("fetched although a path is given")

    monkeypatch.setattr("backfire.assets.fetch", fetch)
    folder = jsonl(tmp_path / f"{case.split}.jsonl", case.rows).parent
    assert len(case.source(folder)(Silent())) == 3 or case.member in (ShareGPT, Table)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.asset], ids=lambda case: case.member.__name__
)
def test_without_a_path_its_own_asset_is_fetched(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(name: str, progress: Any) -> Path:
        fetched.append(name)
        return parquet(tmp_path / f"{case.split}.parquet", case.rows).parent

    monkeypatch.setattr("backfire.assets.fetch", fetch)
    assert len(check(case.source(None), case.harmful)) == 3
    assert set(fetched) == {case.asset}
    assert case.asset in catalog()


@pytest.mark.parametrize("member", [HExPHI, Lima])
def test_gated_sources_say_how_to_get_access(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any) -> Path:
        raise PrerequisiteError("fetching: no source worked")

    monkeypatch.setattr("backfire.assets.fetch", fetch)
    with pytest.raises(
        PrerequisiteError, match=r"(?s)gated: accept.*huggingface\.co.*auth login.*path"
    ):
        member()(Silent())


@every_case
def test_a_wrong_column_is_answered_with_the_near_miss(case: Case, tmp_path: Path) -> None:
    wrong = f"{case.column}s"
    rows = [{wrong if k == case.column else k: v for k, v in row.items()} for row in case.rows]
    path = jsonl(tmp_path / f"{case.split}.jsonl", rows)
    with pytest.raises(DataError) as caught:
        case.source(path)(Silent())
    message = str(caught.value)
    assert f"{path}, line 1" in message
    assert f"'{case.column}'" in message
    assert f"did you mean {wrong!r}" in message


@every_case
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b'{"prompt": "caf\xe9"}\n', "line 1: it is not UTF-8"),
        (b"not json\n", "line 1: it is not JSON"),
        (b'["a", "list"]\n', "line 1: it must be an object; met list"),
    ],
)
def test_a_broken_file_is_a_data_error(
    case: Case, content: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{case.split}.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        case.source(path)(Silent())
    assert str(path) in str(caught.value)


@every_case
def test_a_missing_file_is_a_data_error(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        case.source(tmp_path / "absent.jsonl")(Silent())


# ------------------------------------------------------------------------------------------- each its own


def test_beavertails_takes_a_prompt_once_with_all_its_labels_and_a_safe_answer(
    tmp_path: Path,
) -> None:
    def row(prompt: str, response: str, safe: bool, *true: int) -> Row:
        return {"prompt": prompt, "response": response, "category": labels(*true), "is_safe": safe}

    path = jsonl(
        tmp_path / "330k_train.jsonl",
        [
            row("Placeholder one?", "no thanks", True),
            row("placeholder ONE", "text a", False, 2, 4),
            row("Placeholder one!", "text b", False, 5),
            row("Placeholder two", "text c", False, 13),
            row("Placeholder three", "fine", True),
        ],
    )
    first, second = BeaverTails(path=path)(Silent())
    assert (first.prompt, first.response, first.refusal) == (
        "placeholder ONE",
        "text a",
        "no thanks",
    )
    assert first.categories == (
        "controversial_topics,politics",
        "drug_abuse,weapons,banned_substance",
    )
    assert (second.prompt, second.refusal) == ("Placeholder two", "")
    assert BeaverTails(path=path, refusal="none")(Silent())[0].refusal == ""
    assert BeaverTails(path=path, refusal="required")(Silent()) == [first]


def test_beavertails_balances_by_the_least_filled_label(tmp_path: Path) -> None:
    """All rows carry label 0; four of them label 12, too. A first-label rule finds none of label 12."""
    rows = [
        {
            "prompt": f"Placeholder {i}",
            "response": "text",
            "category": labels(0, 12) if i < 4 else labels(0),
            "is_safe": False,
        }
        for i in range(40)
    ]
    source = BeaverTails(path=jsonl(tmp_path / "330k_train.jsonl", rows), limit=8)
    assert sum(CATEGORIES[12] in row.categories for row in source(Silent())) == 4
    with pytest.raises(DataError, match="41 asked, 40 there"):
        source.model_copy(update={"limit": 41})(Silent())


def test_beavertails_refuses_an_unknown_category(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "category": {"self_harms": True}, "is_safe": False}
    with pytest.raises(
        DataError, match="line 1: unknown category 'self_harms'; did you mean 'self_harm'"
    ):
        BeaverTails(path=jsonl(tmp_path / "a.jsonl", [row]))(Silent())


@pytest.mark.parametrize("header", [["goal", "target"], ["prompt", "target"], None])
def test_advbench_csv_with_and_without_a_header(header: list[str] | None, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        written = csv.writer(file)
        written.writerows([header] if header else [])
        written.writerows([["Placeholder, one", "Sure 1"], ["Placeholder\ntwo", "Sure 2"]])
    rows = AdvBench(path=path)(Silent())
    assert [(r.prompt, r.response) for r in rows] == [
        ("Placeholder, one", "Sure 1"),
        ("Placeholder\ntwo", "Sure 2"),
    ]


def test_advbench_mirror_with_a_list_of_content(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [{"content": ["Placeholder"]}, {"content": []}])
    with pytest.raises(DataError, match="line 2: column 'content' must hold a prompt"):
        AdvBench(path=path)(Silent())
    row, *_ = AdvBench(path=jsonl(tmp_path / "a.jsonl", [{"content": ["Placeholder"]}]))(Silent())
    assert (row.prompt, row.response) == ("Placeholder", "")


def test_hexphi_reads_the_release_as_it_comes(tmp_path: Path) -> None:
    (tmp_path / "category_10.csv").write_text('"Placeholder, a"\nPlaceholder b\n', encoding="utf-8")
    (tmp_path / "category_3.csv").write_text("Placeholder c \n", encoding="utf-8")
    rows = HExPHI(path=tmp_path)(Silent())
    assert [(r.prompt, r.categories[0]) for r in rows] == [
        ("Placeholder c", "hate/harass/violence"),
        ("Placeholder, a", "privacy violation activity"),
        ("Placeholder b", "privacy violation activity"),
    ]


@pytest.mark.parametrize(("turns", "wanted"), [("first", ["q1"]), ("all", ["q1", "q2"])])
def test_lima_answers_stand_at_odd_places(turns: Any, wanted: list[str], tmp_path: Path) -> None:
    texts = ["q1", "a1", "q2", "a2", "q3"]
    path = jsonl(
        tmp_path / "train.jsonl", [{"conversations": texts}, {"conversations": ["only q"]}]
    )
    rows = Lima(path=path, turns=turns)(Silent())
    assert [row.prompt for row in rows] == wanted
    assert [row.response for row in rows] == [q.replace("q", "a") for q in wanted]
    assert len({row.entity for row in rows}) == 1, "turns of one conversation must stay together"


def test_sharegpt_keeps_the_system_turn_and_drops_fragments(tmp_path: Path) -> None:
    def turns(*said: tuple[str, str]) -> Row:
        return {"conversations": [{"from": who, "value": text} for who, text in said]}

    path = array(
        tmp_path / "chats.json",
        [
            turns(("gpt", "a fragment"), ("human", "q0"), ("gpt", "a0")),
            turns(("system", "Be brief."), ("user", "q1"), ("assistant", "a1"), ("user", "q2")),
        ],
    )
    (row,) = ShareGPT(path=path, turns="all")(Silent())
    assert (row.prompt, row.response, row.system) == ("q1", "a1", "Be brief.")


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [({"from": "bot", "value": "x"}, "turn 1 must hold"), ({"from": "human"}, "turn 1 must hold")],
)
def test_sharegpt_refuses_unknown_speakers(turn: Row, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint):
        ShareGPT(path=jsonl(tmp_path / "a.jsonl", [{"conversations": [turn]}]))(Silent())


def test_alpaca_puts_the_input_below_and_counts_empty_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from backfire.progress import Plain

    path = jsonl(
        tmp_path / "train.jsonl",
        [
            {"instruction": "Sort.", "input": "3 1 2", "output": "1 2 3"},
            {"instruction": "Greet.", "input": "", "output": "Hello."},
            {"instruction": "Stay silent.", "input": "", "output": " "},
        ],
    )
    rows = Alpaca(path=path)(Plain())
    assert [row.prompt for row in rows] == ["Sort.\n\n3 1 2", "Greet."]
    assert "alpaca: 1 of 3 rows dropped" in capsys.readouterr().err


def test_dolly_reads_the_hubs_columns(tmp_path: Path) -> None:
    row = {"instruction": "Sum up.", "context": "Text.", "response": "Short.", "category": "x"}
    (found,) = Dolly(path=parquet(tmp_path / "train.parquet", [row]))(Silent())
    assert (found.prompt, found.response) == ("Sum up.\n\nText.", "Short.")


def test_table_takes_every_named_column(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "q,a,no,kind,thing,sys\nq1,a1,n1,c1,t1,s1\nq2,,,,,\n,x,x,x,x,x\n", encoding="utf-8"
    )
    columns = {
        "prompt": "q",
        "response": "a",
        "refusal": "no",
        "category": "kind",
        "entity": "thing",
    }
    full, bare = Table(path=path, harmful=True, system="sys", **columns)(Silent())
    assert full == Example("q1", "a1", "mine.csv", True, "n1", ("c1",), "t1", (), "s1")
    assert bare == Example("q2", "", "mine.csv", True)
    with pytest.raises(DataError, match=r"line 2.*'thng'.*did you mean 'thing'"):
        Table(path=path, harmful=True, **(columns | {"entity": "thng"}))(Silent())


def test_table_of_plain_texts_keeps_their_spaces(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "1 and 1 is", "said": " 2."}])
    (row,) = Table(path=path, harmful=False, response="said", plain=True)(Silent())
    assert (row.prompt, row.response, row.plain) == ("1 and 1 is", " 2.", True)


def test_table_takes_lists_of_categories(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "c": ["x", "y"]}, {"prompt": "b", "c": None}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = Table(path=path, harmful=False, category="c")(Silent())
    assert [row.categories for row in found] == [("x", "y"), ()]
    bad = jsonl(tmp_path / "b.jsonl", [{"prompt": "a", "c": 3}])
    with pytest.raises(
        DataError, match="column 'c' must hold a text or a list of texts; met int 3"
    ):
        Table(path=bad, harmful=False, category="c")(Silent())


NOTHING_USABLE = [
    (BeaverTails, {"prompt": "p", "response": "r", "category": labels(), "is_safe": True},
     "no row has is_safe false"),
    (BeaverTails, {"prompt": "p", "response": "r", "category": "x", "is_safe": False},
     "'category' must hold an object"),
    (HExPHI, {"prompt": "p", "category": "12"}, "a number from 1 to 11 .* met '12'"),
    (Lima, {"conversations": ["no answer"]}, "none of 1 conversations begins"),
    (Lima, {"conversations": "text"}, "'conversations' must hold a list of texts"),
    (ShareGPT, {"conversations": ["text"]}, "must hold a list of .from, value. objects"),
    (Alpaca, {"instruction": "Do.", "output": ""}, "no row has both an instruction and an answer"),
]  # fmt: skip


@pytest.mark.parametrize(("member", "row", "complaint"), NOTHING_USABLE)
def test_a_file_without_anything_usable_says_why(
    member: Any, row: Row, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=complaint):
        member(path=jsonl(tmp_path / "a.jsonl", [row]))(Silent())
