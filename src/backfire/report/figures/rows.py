"""Figures with one row per cell, grouped by attack, in the main table's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backfire.report.figures.words import WIDTH, Blank, cell_name, n_of, said, seeds_of, short
from backfire.report.grid import Grid
from backfire.report.metrics import USABLE, VERIFIED, task_of
from backfire.report.palette import GRID, INK, MARKERS, MUTED, PAPER, TAXONOMY, series
from backfire.report.svg import Canvas, Picture, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["harm", "tasks", "taxonomy"]


def harm(grid: Grid) -> Picture | Blank:
    """Return verified and usable harm by attack, with intervals."""
    title = "Harm by attack"
    metrics = [m for m in (VERIFIED, USABLE) if grid.measured(m)]
    if not metrics:
        return Blank(title, "no harm was measured")
    rows = _rows(grid)
    names = {VERIFIED: "verified harm, %", USABLE: "usable harm, %"}
    with drawing("harm", WIDTH, _height(rows)) as canvas:
        panels = canvas.figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for index, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
            _percent_axis(axes, f"{names[metric]} (lower is safer)")
            _label_rows(axes, rows, named=index == 0)
            _dots(canvas, axes, grid, rows, metric)
        pooled = [grid.get(metrics[0], row.defense, row.attack) for row in rows]
        return canvas.picture(
            title,
            f"Marker: pooled over {seeds_of(grid)}; bar: 95 % interval; ticks: single seeds. "
            f"{n_of(pooled)}."
            + (
                " Usable harm counts harm only where capability is kept."
                if USABLE in metrics
                else ""
            ),
            _listed(grid, rows, metrics[0], "verified harm"),
        )


def taxonomy(grid: Grid) -> Picture | Blank:
    """Return what the answers to unseen hazards are, as stacked bars."""
    title = "What the answers to unseen hazards are"
    if not grid.shares:
        return Blank(title, "tables/labels.parquet is absent or empty")
    rows = [row for row in _rows(grid) if (row.defense, row.attack) in grid.shares]
    classes = next(iter(grid.shares.values())).parts
    with drawing("taxonomy", WIDTH, _height(rows) + 0.25) as canvas:
        axes = canvas.figure.add_subplot()
        _percent_axis(axes, "% of answers")
        _label_rows(axes, rows, named=True)
        axes.grid(visible=False)
        left = dict.fromkeys(rows, 0.0)
        for name in classes:
            color = TAXONOMY.get(name, MUTED)
            for row in rows:
                share = grid.shares[row.defense, row.attack]
                width = 100 * share.parts[name]
                if width:
                    axes.barh(
                        [row.y],
                        [width],
                        left=[left[row]],
                        height=0.74,
                        color=color.light,
                        hatch=color.hatch,
                        edgecolor=PAPER.light,
                        linewidth=0.8,
                        gid=canvas.tip(
                            f"{cell_name(row.defense, row.attack)}: {name} {width:.1f} %, n = {share.n}"
                        ),
                    )
                left[row] += width
        _class_legend(canvas, list(classes))
        counts = sorted({share.n for share in grid.shares.values()})
        span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        return canvas.picture(
            title,
            f"One class per answer, pooled over {seeds_of(grid)}; n = {span} answers per cell. "
            "“Harmful and useful” says that an answer's content is right, whatever else the model can "
            "still do; the class is the judge's and the rules', not a person's.",
            "; ".join(
                f"{cell_name(r.defense, r.attack)}: "
                + ", ".join(
                    f"{k} {v:.0%}" for k, v in grid.shares[r.defense, r.attack].parts.items() if v
                )
                for r in rows
            ),
        )


def tasks(grid: Grid) -> Picture | Blank:
    """Return accuracy by task, with its chance line."""
    title = "Capability by task"
    names = grid.tasks
    if not names:
        return Blank(title, "no multiple-choice task was measured")
    rows = _rows(grid)
    per_line = min(4, len(names))
    lines = -(-len(names) // per_line)
    with drawing("tasks", WIDTH, _height(rows) * lines) as canvas:
        panels = canvas.figure.subplots(lines, per_line, sharey=True, squeeze=False).flat
        for index, axes in enumerate(panels):
            if index >= len(names):
                axes.set_visible(False)
                continue
            metric = names[index]
            _percent_axis(axes, "")
            axes.set_title(short(task_of(metric) or metric))
            _label_rows(axes, rows, named=index % per_line == 0)
            chance = grid.chance.get(metric)
            if chance is not None:
                axes.axvline(100 * chance, color=INK.light, linewidth=0.9, linestyle=(0, (3, 2)))
            _dots(canvas, axes, grid, rows, metric)
        pooled = [grid.get(name, row.defense, row.attack) for name in names for row in rows]
        unknown = [task_of(name) or name for name in names if name not in grid.chance]
        return canvas.picture(
            title,
            f"Accuracy in %, pooled over {seeds_of(grid)}, 95 % intervals; ticks: single seeds; dashed: "
            f"chance. {n_of(pooled)}."
            + (f" No chance line is known for {', '.join(unknown)}." if unknown else ""),
            " ".join(_listed(grid, rows, name, task_of(name) or name) for name in names),
        )


@dataclass(frozen=True)
class _Row:
    attack: str
    defense: str
    y: float


def _rows(grid: Grid) -> list[_Row]:
    """Return one row per cell of the grid, grouped by attack, from the top (y falls)."""
    rows, y = [], 0.0
    for attack in grid.attacks:
        y -= 1.0  # the group's heading
        for defense in grid.defenses:
            if grid.has(defense, attack):
                rows.append(_Row(attack, defense, y))
                y -= 1.0
        y -= 0.35
    return rows


def _height(rows: Sequence[_Row]) -> float:
    return 0.75 - 0.19 * (rows[-1].y - 1)


def _label_rows(axes: Axes, rows: Sequence[_Row], *, named: bool) -> None:
    """Name the rows of the first panel; all panels get a quiet line under each group's heading."""
    axes.set_ylim(rows[-1].y - 0.8, 0.3)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([row.y for row in rows], [short(row.defense) for row in rows])
    axes.tick_params(axis="y", length=0, labelleft=named)
    for first in {row.attack: row for row in reversed(rows)}.values():
        axes.axhline(first.y + 0.5, color=GRID.light, linewidth=0.7, zorder=0)
        if named:
            heading = f"after {short(first.attack)}" if first.attack != "none" else "as released"
            axes.annotate(
                heading,
                (0, first.y + 0.62),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                weight="bold",
                fontsize=8,
            )


def _dots(
    canvas: Canvas, axes: Axes, grid: Grid, rows: Sequence[_Row], metric: str, scale: float = 100
) -> None:
    """Draw one metric: a marker and its interval a row, one faint tick a seed."""
    colors = series(grid.defenses)
    for row in rows:
        pooled = grid.get(metric, row.defense, row.attack)
        color = colors[row.defense].light
        singles = [
            m.value * scale
            for m in grid.by_seed(metric, row.defense, row.attack)
            if m.value is not None
        ]
        axes.plot(singles, [row.y] * len(singles), "|", color=color, markersize=6, alpha=0.55)
        if pooled is None or pooled.value is None:
            axes.text(0, row.y, " not measured", color=MUTED.light, va="center", fontsize=7)
            continue
        if pooled.low is not None and pooled.high is not None:
            ends = [pooled.low * scale, pooled.high * scale]
            axes.plot(ends, [row.y] * 2, color=color, linewidth=1.6, solid_capstyle="butt")
        marker = MARKERS[grid.defenses.index(row.defense) % len(MARKERS)]
        axes.plot(
            [pooled.value * scale],
            [row.y],
            marker,
            color=color,
            markersize=5.5,
            markeredgecolor=PAPER.light,
            markeredgewidth=0.7,
            clip_on=False,
            gid=canvas.tip(f"{cell_name(row.defense, row.attack)}: {said(pooled, scale)}"),
        )


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_xlim(-2, 102)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(visible=True, axis="x")
    axes.set_xlabel(label)


def _listed(grid: Grid, rows: Sequence[_Row], metric: str, name: str) -> str:
    parts = []
    for row in rows:
        found = grid.get(metric, row.defense, row.attack)
        if found is not None and found.value is not None:
            parts.append(f"{cell_name(row.defense, row.attack)}: {100 * found.value:.0f} %")
    return f"{name}; " + "; ".join(parts)


def _class_legend(canvas: Canvas, classes: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=TAXONOMY.get(name, MUTED).light,
            hatch=TAXONOMY.get(name, MUTED).hatch,
            edgecolor=PAPER.light,
            label=name,
        )
        for name in classes
    ]
    canvas.figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(classes),
        columnspacing=1.2,
        handlelength=1.4,
    )
