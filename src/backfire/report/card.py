"""The defense card: from a run folder to one self-contained page, its figures and its tables.

>>> build(Path("runs/demo-3f0c1c2a9d4e5b67"))                                # doctest: +SKIP
PosixPath('runs/demo-3f0c1c2a9d4e5b67/report/report.html')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backfire.report import sections
from backfire.report.document import dressed, render
from backfire.report.figures import Blank, all_figures
from backfire.report.gaps import gaps
from backfire.report.grid import Grid
from backfire.report.markup import class_of
from backfire.report.run import Run, read_run
from backfire.report.samples import samples
from backfire.report.search import searched, trials
from backfire.report.svg import Picture
from backfire.report.tables import Table, counted
from backfire.store import replace_folder

__all__ = ["build"]


def build(run: Path, show_text: bool = False) -> Path:
    """Write `report/` in a run folder and return the path of `report/report.html`.

    Reads `manifest.json`, `conclusion.json`, `search.json`, `experiment.yaml` and `tables/*.parquet`,
    nothing else; the same folder gives the same bytes. Besides the page it writes `figures/*.svg`,
    `tables/*.csv`, `tables/*.md` and `card.md`, the first screen for a model repository's README.

    Args:
        run: A run folder.
        show_text: Show prompts and answers in the samples; without it only their length, label and
            verdicts. What models wrote may be harmful.

    Raises:
        CheckpointError: when the folder is not a run folder, or something in it is damaged. What is
            merely absent is named in the page.
    """
    found = read_run(run)
    grid = Grid(found)
    figures = all_figures(grid)
    tables = _tables(found, grid)
    shared: dict[str, Any] = {
        "card": _card(found, grid),
        "tables": tables,
        "gaps": gaps(grid),
        "missing": found.missing,
    }
    page = _page(found, grid, figures, show_text=show_text, shared=shared)
    with replace_folder(run / "report") as folder:
        (folder / "figures").mkdir()
        (folder / "tables").mkdir()
        for figure in figures:
            if isinstance(figure, Picture):
                _write(folder / "figures" / f"{figure.name}.svg", figure.svg)
        for table in tables.values():
            if table.rows:
                _write(folder / "tables" / f"{table.name}.csv", table.csv())
                _write(folder / "tables" / f"{table.name}.md", table.markdown())
        _write(folder / "card.md", render("card.md.j2", **shared))
        _write(folder / "report.html", page)
    return run / "report" / "report.html"


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))


@dataclass(frozen=True)
class _Defense:
    """What became of one defense."""

    name: str
    status: str
    sentence: str
    """Empty when the card's own sentence says it."""
    notes: Sequence[str]


@dataclass(frozen=True)
class _Card:
    """The first screen."""

    name: str
    question: str
    meta: Sequence[str]
    status: str
    tone: str
    """`good`, `bad` or empty: the color of the line beside the verdict."""
    sentence: str
    scope: str
    """What the sentence holds for."""
    defenses: Sequence[_Defense]
    notes: Sequence[str]
    """What the conclusion says beside its sentence."""
    warnings: Sequence[str]
    training: str
    footer: str


def _card(run: Run, grid: Grid) -> _Card:
    manifest, conclusion = run.manifest, run.conclusion
    status = str(conclusion.get("status") or "no conclusion")
    version = (manifest.get("versions") or {}).get("backfire", "unknown version")
    return _Card(
        name=str(manifest.get("name") or run.folder.name),
        question=str(manifest.get("question") or ""),
        meta=_meta(run, grid),
        status=status.capitalize(),
        tone=_TONES.get(status, ""),
        sentence=str(conclusion.get("sentence") or "This run has not come to a conclusion."),
        scope=f"This holds for {grid.settings.get('model') or 'this model'} and for what was tried; what "
        "was not measured is listed below.",
        defenses=_defenses(conclusion),
        notes=_notes(run),
        warnings=_warnings(run, grid),
        training=_training(run),
        footer=f"Written by backfire {version} from the tables of this run alone.",
    )


_TONES = {"broken": "bad", "held in what was tried": "good"}


def _meta(run: Run, grid: Grid) -> list[str]:
    manifest = run.manifest
    source = manifest.get("source") or {}
    commit = str(source.get("commit") or "")[:10]
    state = " (uncommitted changes)" if source.get("dirty") else ""
    device = manifest.get("device") or {}
    items = [
        f"model {grid.settings['model']}" if grid.settings.get("model") else "",
        f"{counted(len(grid.defenses), 'defense')} × {counted(len(grid.attacks), 'attack')} × "
        f"{counted(len(grid.seeds), 'seed')}, controls included" if grid.defenses else "",
        f"begun {manifest['started']}" if manifest.get("started") else "",
        f"on {device['name']}" if device.get("name") else "",
        f"source {commit}{state}" if commit else "",
        f"digest {manifest['digest']}" if manifest.get("digest") else "",
    ]  # fmt: skip
    return [item for item in items if item]


def _notes(run: Run) -> list[str]:
    """Return what the conclusion says beside its sentence, and what the run folder lacks."""
    notes = list(map(str, run.conclusion.get("notes") or ()))
    if run.missing:
        lacking = ", ".join(sentence.split(":")[0] for sentence in run.missing)
        notes.append(f"Not in the run folder: {lacking}. What follows from that is said below.")
    return notes


def _defenses(conclusion: Mapping[str, Any]) -> list[_Defense]:
    """Return each defense's own verdict; with one defense its sentence is the run's already."""
    found = conclusion.get("defenses") or ()
    return [
        _Defense(
            str(verdict["defense"]),
            str(verdict["status"]),
            str(verdict["sentence"]) if len(found) > 1 else "",
            [*_break_budgets(verdict["break_budgets"]), *map(str, verdict["notes"])],
        )
        for verdict in found
    ]


def _warnings(run: Run, grid: Grid) -> list[str]:
    """Return what a busy reader must not miss."""
    found = []
    status = run.manifest.get("status")
    if status not in ("complete", None):
        found.append(f"The run is not complete (status: {status}).")
    if (run.manifest.get("source") or {}).get("dirty"):
        found.append("The program had uncommitted changes: its commit does not say what ran.")
    if grid.failed:
        found.append(
            f"{counted(len(grid.failed), 'cell')} of the grid failed; the reasons are below."
        )
    warned = [row for row in run.rows("effects") if row.get("warning")]
    if warned:
        texts = list(dict.fromkeys(str(row["warning"]) for row in warned))
        found.append(
            f"{counted(len(warned), 'training stage')} raised a warning: {' '.join(texts[:2])}"
        )
    return found


def _break_budgets(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give one sentence a tier, in the first unit that its budgets are counted in."""
    seen = set()
    for budget in found:
        if budget["tier"] not in seen:
            seen.add(budget["tier"])
            yield str(budget["sentence"])


def _training(run: Run) -> str:
    rows = run.rows("effects")
    if not rows:
        return ""
    least = min(rows, key=lambda row: row["share_changed"])
    lost = max(rows, key=lambda row: row["share_lost_in_bf16"])
    warned = sum(bool(row.get("warning")) for row in rows)
    warnings = counted(warned, "warning") if warned else "no warning"
    return (
        f"{counted(len(rows), 'training stage')}, {warnings}. The smallest share of weights changed is "
        f"{100 * least['share_changed']:.1f} % ({least['method']}). Of the changed weights up to "
        f"{100 * lost['share_lost_in_bf16']:.1f} % would not have moved in bf16 ({lost['method']})."
    )


def _tables(run: Run, grid: Grid) -> dict[str, Table]:
    known = {"name", "question", "digest", "settings", "data", "stages", "passed"}
    facts = {key: value for key, value in run.manifest.items() if key not in known}
    return {
        "main": sections.main(grid),
        "members": sections.members(grid),
        "searches": searched(run),
        "trials": trials(run),
        "effects": sections.effects(run),
        "pairing": sections.pairing(run),
        "judges": sections.judges(grid),
        "tasks": sections.tasks(run),
        "data": sections.data(run),
        "published": sections.published(),
        "measurements": sections.measurements(grid),
        "provenance": sections.facts("provenance", "Provenance", facts),
        "stages": sections.stages(run),
    }


_CONTENTS = (
    ("main-table", "Table"),
    ("figures", "Figures"),
    ("gaps", "Not measured"),
    ("training", "Training effect"),
    ("judges", "Judges"),
    ("data", "Data"),
    ("published", "Published numbers"),
    ("measurements", "All measurements"),
    ("settings", "Settings"),
    ("provenance", "Provenance"),
    ("samples", "Samples"),
)


def _page(
    run: Run,
    grid: Grid,
    figures: Sequence[Picture | Blank],
    *,
    show_text: bool,
    shared: Mapping[str, Any],
) -> str:
    yaml = run.folder / "experiment.yaml"
    classes = next(iter(grid.shares.values())).parts if grid.shares else ()
    return render(
        "card.html.j2",
        **shared,
        **dressed(),
        contents=_CONTENTS,
        figures=figures,
        classes=[(name, class_of(name)) for name in classes],
        pooled=sections.measurements(grid, by_seed=False),
        settings=yaml.read_text(encoding="utf-8") if yaml.is_file() else "",
        samples=samples(grid, show_text=show_text),
        show_text=show_text,
    )
