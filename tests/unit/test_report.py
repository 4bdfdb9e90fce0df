"""The defense card: true to its tables, safe with what models wrote, silent about nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import synthetic_run
from backfire.errors import CheckpointError
from backfire.report import build
from backfire.report.figures.plane import heat_map
from backfire.report.grid import Grid
from backfire.report.palette import css
from backfire.report.run import TABLES, read_run
from backfire.report.sections import judges, main, members, published
from backfire.report.svg import Picture
from backfire.report.tables import Column, Table, number
from backfire.report.untrusted import inert, markdown_cell, spreadsheet_cell

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"' onmouseover=alert(3) "
    "</pre></table><style>*{display:none}</style>{{ 7*7 }}\u202ereversed\u0007\x1b[31m"
)


_FEW = ("verified_harm", "capability_retention")
"""Metrics enough for a page with a verdict."""


@pytest.fixture(scope="module")
def made() -> Any:
    return synthetic_run.make()


@pytest.fixture(scope="module")
def tables(made: Any) -> dict[str, list[dict[str, Any]]]:
    return made[0]


@pytest.fixture(scope="module")
def conclusion(made: Any) -> dict[str, Any]:
    return made[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made: Any) -> Path:
    folder = synthetic_run.write_run(tmp_path_factory.mktemp("run"), *made)
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tables: Any) -> Path:
    """A small run whose every text is hostile."""
    small = {
        name: [
            {
                k: HOSTILE if k in {"prompt", "response", "raw", "absent"} else v
                for k, v in row.items()
            }
            for row in rows[:6]
        ]
        for name, rows in tables.items()
        if name in {"cells", "exchanges", "verdicts", "labels", "measurements"}
    }
    for rows in small.values():
        for row in rows:
            row["attack"] = HOSTILE if row["attack"] == "bft-full" else row["attack"]
    folder = synthetic_run.write_run(tmp_path_factory.mktemp("hostile"), small)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"name": HOSTILE, "question": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "experiment.yaml").write_text(HOSTILE)
    build(folder, show_text=True)
    return folder


class _Page(HTMLParser):
    """Collects what a browser would act on, and checks that tags are balanced."""

    VOID = frozenset(
        {"meta", "img", "br", "input", "link", "path", "rect", "line", "circle", "use"}
    )

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def _policy(page: _Page) -> str:
    return next(m["content"] or "" for m in page.all("meta") if "http-equiv" in m)


# --------------------------------------------------------------------------------------------- the page


def test_page_is_whole_and_says_the_verdict_first(page: str, conclusion: Any) -> None:
    parsed = _Page(page)
    text = " ".join(" ".join(parsed.text).split())
    first = text[: text.index("Every defense under every attack")]
    assert conclusion["sentence"] in first
    for verdict in conclusion["defenses"]:
        assert verdict["sentence"] in first
        assert all(note in first for note in verdict["notes"])
    assert all(note in first for note in conclusion["notes"])
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page)[1:] == [
        "Every defense under every attack",
        "Figures",
        "What was not measured",
        "Did training move the weights?",
        "Judges",
        "Data",
        "Published numbers, not ours",
        "Every measurement",
        "Settings",
        "Provenance",
        "Samples",
    ]
    assert "Prompts and answers are redacted" in text
    assert "uncommitted changes" in text
    assert "Not tried: " in text
    assert "harmful rows mixed into benign data" in text


def test_page_reaches_for_nothing_outside_itself(page: str) -> None:
    parsed = _Page(page)
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in {"src", "href", "xlink:href", "action", "data", "srcset"}:
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert not re.search(r"https?://", page)


def test_links_in_the_page_lead_somewhere_and_ids_are_unique(page: str) -> None:
    parsed = _Page(page)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {(a.get("href") or "")[1:] for a in parsed.all("a")}
    wanted |= {(a.get("href") or "")[1:] for a in parsed.all("use")}
    wanted |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert wanted <= set(ids)


def test_policy_allows_exactly_our_script_and_style(page: str) -> None:
    policy = _policy(_Page(page))
    for tag in ("script", "style"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_tables_and_figures_are_named_for_readers_who_cannot_see_them(page: str) -> None:
    parsed = _Page(page)
    assert sum(tag == "caption" for tag, _ in parsed.tags) == sum(
        tag == "table" for tag, _ in parsed.tags
    )
    assert all("scope" in head for head in parsed.all("th"))
    drawn = [a for a in parsed.all("svg") if a.get("role") == "img"]
    assert drawn
    assert all(a.get("aria-label") for a in drawn)
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in parsed.all("svg"))
    assert all("n = " in c for c in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL))


def test_text_colors_can_be_read_in_both_schemes() -> None:
    light, dark = (dict(re.findall(r"--([\w-]+):(#\w{6})", part)) for part in css().split("@media"))
    for scheme in (light, dark):
        for ink in ("ink", "muted"):
            assert _contrast(scheme[ink], scheme["paper"]) >= 4.5
        for mark in [name for name in scheme if re.fullmatch(r"s\d", name)]:
            assert _contrast(scheme[mark], scheme["paper"]) >= 3, mark


def _contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        lin = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * lin[0] + 0.7152 * lin[1] + 0.0722 * lin[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# -------------------------------------------------------------------------------------- hostile content


def test_hostile_text_stays_text(hostile: Path) -> None:
    page = (hostile / "report" / "report.html").read_text(encoding="utf-8")
    parsed = _Page(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert sum(tag == "style" for tag, _ in parsed.tags) == 1
    assert not list(parsed.all("img"))
    assert not [name for _, a in parsed.tags for name in a if name.startswith("on")]
    for acting in "\u202e\u0007\x1b":
        assert acting not in page
    text = "".join(parsed.text)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "⟨U+202E⟩reversed⟨U+0007⟩⟨U+001B⟩" in text


def test_model_text_never_reaches_an_attribute(hostile: Path) -> None:
    page = (hostile / "report" / "report.html").read_text(encoding="utf-8")
    shown = synthetic_run.ATTACKS
    for tag, attributes in _Page(page).tags:
        for name, value in attributes.items():
            if "alert(2)" in (value or ""):
                # Labels of the grid are the user's own words; they may be looked for and sorted by.
                assert name in {"data-search", "data-sort", "aria-label"}, (tag, name, shown)


def test_hostile_text_stays_text_in_markdown_csv_and_svg(hostile: Path) -> None:
    card = (hostile / "report" / "card.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", card)
    for path in (hostile / "report" / "figures").glob("*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8")
    assert spreadsheet_cell("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert markdown_cell("a|b\n<c>") == r"a\|b \<c\>"


@given(st.text())
def test_inert_text_is_what_it_looks_like(text: str) -> None:
    shown = inert(text)
    assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in shown)
    assert inert(shown) == shown


def test_samples_are_redacted_unless_asked_for(run: Path, page: str, hostile: Path) -> None:
    assert "placeholder 3" not in page
    assert "request 3" not in page
    assert "20 tokens" in page
    exchanges = len(re.findall('class="exchange"', page))
    cells = len(synthetic_run.DEFENSES) * len(synthetic_run.ATTACKS)
    assert exchanges == 3 * cells
    shown = (hostile / "report" / "report.html").read_text(encoding="utf-8")
    assert "may be harmful" in shown


def test_long_text_is_cut_and_counted() -> None:
    assert inert("a" * 12, limit=10) == "a" * 10 + " … (2 more characters)"


# --------------------------------------------------------------------------------- truth and completeness


def test_csv_holds_the_table_and_the_page_shows_it(run: Path, page: str, tables: Any) -> None:
    with (run / "report" / "tables" / "main.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(synthetic_run.DEFENSES) * len(synthetic_run.ATTACKS)
    pooled = {
        (m["defense"], m["attack"]): m
        for m in tables["measurements"]
        if m["metric"] == "verified_harm" and m["seed"] is None
    }
    for row in rows:
        names = {"undefended": "none", "as released": "none"}
        key = (names.get(row["defense"], row["defense"]), names.get(row["attack"], row["attack"]))
        assert float(row["verified_harm"]) == pooled[key]["value"]
        assert float(row["verified_harm_low"]) == pooled[key]["low"]
        assert int(row["verified_harm_n"]) == pooled[key]["n"]
        shares = [float(row[f"answers: {name}"]) for name in synthetic_run.CLASSES]
        assert sum(shares) == pytest.approx(1)
    worst = pooled["sdd", "mft-100-full"]
    cell = f'<span class="value">{worst["value"] * 100:.0f}</span>'
    assert cell in page
    markdown = (run / "report" / "tables" / "main.md").read_text(encoding="utf-8")
    assert (
        f"{worst['value'] * 100:.0f} [{worst['low'] * 100:.0f}, {worst['high'] * 100:.0f}]"
        in markdown
    )


def test_headers_state_unit_range_and_direction(run: Path) -> None:
    table = main(Grid(read_run(run)))
    for column in table.columns[2:]:
        assert column.hint, column.key
        if column.key != "answers":
            assert "lower is" in column.hint or "higher is" in column.hint
    chance = {c.title: c.mark for c in table.columns if c.key.startswith("accuracy")}
    assert chance == {"sciq": 0.25, "arc_easy": 0.25, "piqa": 0.5, "openbookqa": 0.25}


def test_a_model_shared_by_all_seeds_is_counted_once(run: Path) -> None:
    grid = Grid(read_run(run))
    models = (
        len(list(synthetic_run.cells())) - 2
    )  # the undefended released model serves three seeds
    given = {row["judge"]: row for row in judges(grid).rows}
    assert given["programmatic"]["given"] == models * synthetic_run.NUM_PROMPTS
    assert grid.shares["none", "none"].n == synthetic_run.NUM_PROMPTS
    assert grid.shares["sdd", "none"].n == 3 * synthetic_run.NUM_PROMPTS


@pytest.mark.parametrize("kept", [(), ("measurements",)])
def test_what_is_absent_is_said(tmp_path: Path, tables: Any, kept: tuple[str, ...]) -> None:
    folder = synthetic_run.write_run(tmp_path, {name: tables[name] for name in kept})
    (folder / "experiment.yaml").unlink()
    page = build(folder).read_text(encoding="utf-8")
    _Page(page)
    for name in TABLES:
        assert (f"tables/{name}.parquet" in page) == (name not in kept)
    assert "This run has not come to a conclusion." in page
    assert "conclusion.json" in page
    assert "experiment.yaml is absent" in page
    assert "Not drawn" in page
    if not kept:
        assert "There are no measurements, so there is no table." in page
        assert "harm is unknown, not zero" in page


def test_what_was_not_planned_is_not_missed(tmp_path: Path, tables: Any) -> None:
    folder = synthetic_run.write_run(tmp_path, {"measurements": tables["measurements"]})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    settings = manifest["settings"]
    settings["evaluations"] = [{"name": "capability"}]
    settings["defenses"] = [
        {"name": "refusal_sft"},
        {"name": "meta_sdd", "answers": "refusal", "pairing": {}},
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lacking = {line.split(":")[0] for line in read_run(folder).missing}
    made = {"cells", "answers", "tasks", "trajectory", "effects"}
    assert lacking == {"conclusion.json"} | {f"tables/{name}.parquet" for name in made}


def test_an_absent_value_gives_its_reason(tmp_path: Path, tables: Any) -> None:
    rows = [dict(m) for m in tables["measurements"] if m["metric"] in _FEW]
    for row in rows:
        if (row["metric"], row["defense"], row["attack"]) == ("verified_harm", "sdd", "none"):
            row.update(value=None, low=None, high=None, n=0, note="the judge was out of memory")
    page = build(synthetic_run.write_run(tmp_path, {"measurements": rows})).read_text(
        encoding="utf-8"
    )
    assert (
        '<span class="absent">—</span><span class="why">the judge was out of memory</span>' in page
    )
    assert not re.search(r"\bnan\b", page.lower())


def test_failed_cells_and_warnings_reach_the_first_screen(tmp_path: Path, tables: Any) -> None:
    cells = [dict(row) for row in tables["cells"]]
    cells[7].update(status="failed", reason="loss became NaN at step 3")
    effects = [dict(row) for row in tables["effects"]]
    effects[0]["warning"] = "no weight moved"
    few = [m for m in tables["measurements"] if m["metric"] in _FEW]
    kept = {"cells": cells, "effects": effects, "measurements": few}
    page = build(synthetic_run.write_run(tmp_path, kept)).read_text(encoding="utf-8")
    first, rest = page.split('<section id="main-table">')
    assert "1 cell of the grid failed" in first
    assert "no weight moved" in first
    assert "loss became NaN at step 3" in rest


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no manifest.json"),
        ({"manifest.json": '{"schema_version": 999}'}, "version 999"),
        ({"manifest.json": "{"}, "not valid JSON"),
        ({"manifest.json": "{}", "tables/labels.parquet": "PAR1 but not really"}, "labels.parquet"),
    ],
)
def test_what_is_no_run_folder_is_refused(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        build(tmp_path)
    assert not (tmp_path / "report").exists()


# ------------------------------------------------------------------------------------------------ figures


def test_rebuilding_gives_the_same_bytes(run: Path) -> None:
    def contents() -> dict[str, bytes]:
        found = sorted((run / "report").rglob("*.*"))
        return {str(p.relative_to(run)): p.read_bytes() for p in found if p.is_file()}

    before = contents()
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 20, "axes.grid": True}):  # a user's own matplotlibrc
        build(run)
    assert contents() == before
    figures = {Path(name).stem for name in before if name.endswith(".svg")}
    assert figures >= {"plane", "harm", "taxonomy", "tasks", "trajectories", "similarity"}


def test_heat_map_is_drawn_in_lines_not_pixels(run: Path) -> None:
    picture = heat_map(Grid(read_run(run)))
    assert isinstance(picture, Picture)
    assert "<image" not in picture.svg
    assert ">undefended<" in picture.svg


def test_figures_hold_no_date_and_show_the_control(run: Path) -> None:
    for path in (run / "report" / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "dc:date" not in text
        if path.stem not in {"similarity"}:
            assert "undefended" in text, path.stem


def test_report_needs_neither_torch_nor_pyplot(tmp_path: Path, tables: Any) -> None:
    few = [m for m in tables["measurements"] if m["metric"] in _FEW]
    run = synthetic_run.write_run(tmp_path, {"measurements": few})
    code = (
        "import sys; from pathlib import Path; from backfire.report import build; build(Path(sys.argv[1]));"
        "print(*[m for m in ('torch', 'transformers', 'matplotlib.pyplot') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


# --------------------------------------------------------------------------------------- published numbers


def test_published_numbers_are_complete_and_in_range() -> None:
    table = published()
    sources = {str(row["source"]) for row in table.rows}
    assert len(sources) == 2
    for row in table.rows:
        for column in table.columns[4:]:
            value = row.get(column.key)
            low, high = (1, 5) if column.hint == "1-5" else (0, 100)
            assert value is None or low <= float(str(value)) <= high
    found = {(str(r["source"])[:3], r["defense"], r["attack"]): r for r in table.rows}
    assert found["SDD", "sdd", "harmful 100-shot"]["harmfulness rate"] == 0
    assert found["Tam", "sdd", "harmful 100-shot"]["harmfulness rate"] == 89.7


def test_numbers_are_written_as_people_read_them() -> None:
    assert number(-0.12, Column("x", "x", scale=100)) == "−12"
    assert number(-0.0004, Column("x", "x", digits=2)) == "0.00"
    assert number(1234.5, Column("x", "x", digits=1)) == "1,234.5"
    table = Table("t", "t", [Column("a", "a|b", kind="text")], [{"a": "x"}])
    assert table.markdown().splitlines()[0] == r"| a\|b |"


def test_data_seen_stands_in_the_card_and_unequal_data_is_a_warning(
    tmp_path: Path, tables: Any, conclusion: Any
) -> None:
    few = {"cells": tables["cells"], "measurements": tables["measurements"]}
    folder = synthetic_run.write_run(tmp_path, few, conclusion)
    manifest = json.loads((folder / "manifest.json").read_text())
    prompts, answers = {"defense": 400}, {"defense": 400, "defender_harm": 1000}
    attack = {"kind": "attack", "label": "bft-full", "rows": {"benign": 100}}

    def read(second: dict[str, int]) -> Grid:
        rows = zip(("sdd", "sdd-reject"), (prompts, second), strict=True)
        reads = [{"kind": "defense", "label": name, "rows": seen} for name, seen in rows]
        (folder / "manifest.json").write_text(json.dumps(manifest | {"reads": [*reads, attack]}))
        return Grid(read_run(folder))

    fair = read(prompts)
    assert not any("Unequal data" in note for note in main(fair).notes)
    unfair = read(answers)
    sees = {row["label"]: row["sees"] for row in members(unfair).rows}
    assert sees["sdd"] == "400 harmful prompts"
    assert sees["sdd-reject"] == "400 harmful prompts, 1,000 harmful answers"
    assert sees["bft-full"] == "100 benign pairs"
    assert sees["mft-10-full"] == "not recorded"
    (note,) = (n for n in main(unfair).notes if "Unequal data" in n)
    assert "sdd-reject trained on harmful answers, sdd did not" in note
    build(folder)
    for file in ("report.html", "card.md"):
        assert "Unequal data" in (folder / "report" / file).read_text(encoding="utf-8")
