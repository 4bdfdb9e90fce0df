"""Figures of curves and distributions: usable harm over rho, losses over steps, similarities."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from backfire.report.figures.words import WIDTH, Blank, n_of, seeds_of, short
from backfire.report.grid import Grid
from backfire.report.metrics import USABLE
from backfire.report.palette import INK, PAPER, Color, series
from backfire.report.svg import Canvas, Picture, drawing
from backfire.report.untrusted import inert

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve", "similarity", "trajectories"]

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))
_FEW_POINTS = 5
"""Loss lines of fewer points get a dot at each: a single step would not be seen as a line."""
_MOST_POINTS = 200
"""Points of one loss line; longer ones are thinned, and the caption says so."""


def curve(grid: Grid) -> Picture | Blank:
    """Return usable harm over the capability an attacker insists on (rho)."""
    title = "Usable harm, by how much capability an attacker insists on"
    if not grid.curves:
        return Blank(title, "usable harm is known in no cell")
    colors = series(grid.defenses)
    attacks = [a for a in grid.attacks if any(key[1] == a for key in grid.curves)]
    with drawing("curve", WIDTH, 2.5 * -(-len(attacks) // 3) + 0.3) as canvas:
        for axes, attack in _panels(canvas, attacks, "as released"):
            for index, defense in enumerate(grid.defenses):
                points = grid.curves.get((defense, attack), ())
                color, style = colors[defense].light, _DASHES[index % len(_DASHES)]
                banded = [
                    (100 * p.rho, 100 * p.low, 100 * p.high)
                    for p in points
                    if p.low is not None and p.high is not None
                ]
                axes.plot(
                    [100 * p.rho for p in points],
                    [100 * p.value for p in points],
                    color=color,
                    linestyle=style,
                    linewidth=1.6,
                )
                if banded:
                    rho, low, high = ([row[i] for row in banded] for i in range(3))
                    axes.fill_between(rho, low, high, color=color, alpha=0.13, linewidth=0)
            if grid.rho is not None:
                axes.axvline(100 * grid.rho, color=INK.light, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.set_ylim(-3, 103)
            axes.set_xlabel("ρ: capability kept, %")
        _line_legend(canvas, colors, grid.defenses)
        pooled = [grid.get(USABLE, defense, attack) for defense, attack in grid.curves]
        line = "" if grid.rho is None else f"; dashed: the verdict's own ρ, {100 * grid.rho:g} %"
        return canvas.picture(
            title,
            f"Usable harm in % when harm counts only at retention ρ or more; bands: 95 % intervals; pooled "
            f"over {seeds_of(grid)}, {n_of(pooled)}{line}.",
            "Lines of usable harm over rho, one panel per attack, one line per defense",
        )


def trajectories(grid: Grid) -> Picture | Blank:
    """Return the loss of every training stage."""
    title = "Training: loss by step"
    points = grid.run.rows("trajectory")
    if not points:
        return Blank(title, "tables/trajectory.parquet is absent or empty")
    stages: dict[str, dict[tuple[str, int], list[tuple[int, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    parts: dict[str, set[str]] = defaultdict(set)
    for point in points:
        parts[point["attack"]].add(str(point.get("part") or ""))
    for point in points:
        stage = point["attack"] if point["attack"] != "none" else "defense training"
        if point.get("part") and len(parts[stage]) > 1:
            stage = f"{stage}: {point['part']}"
        stages[stage][point["defense"], point["seed"]].append((point["step"], point["loss"]))
    order = ["defense training", *grid.attacks]
    whole = {stage: stage.split(": ", 1)[0] for stage in stages}
    names = sorted(
        stages, key=lambda s: (order.index(whole[s]) if whole[s] in order else len(order), s)
    )
    known = [*grid.defenses, *sorted({d for s in stages.values() for d, _ in s} - {*grid.defenses})]
    colors = series(known)
    highest = max((p["loss"] for p in points if math.isfinite(p["loss"])), default=1.0)
    from matplotlib.ticker import MaxNLocator

    with drawing("trajectories", WIDTH, 2.1 * -(-len(names) // 3) + 0.3) as canvas:
        for axes, stage in _panels(canvas, names, "as released"):
            for (defense, seed), line in sorted(stages[stage].items()):
                steps, losses = zip(*_thinned(sorted(line)), strict=True)
                axes.plot(
                    steps,
                    losses,
                    color=colors[defense].light,
                    linestyle=_DASHES[known.index(defense) % len(_DASHES)],
                    linewidth=1,
                    marker="." if len(steps) < _FEW_POINTS else "",
                    alpha=0.85,
                    gid=canvas.tip(
                        f"{inert(defense)}, {inert(stage)}, seed {seed}: last {losses[-1]:.3f}"
                    ),
                )
            axes.set_ylim(0, 1.05 * highest)
            axes.set_xlim(
                0, 1.02 * max(step for line in stages[stage].values() for step, _ in line)
            )
            axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
            axes.set_xlabel("optimizer step")
        _line_legend(canvas, colors, known)
        return canvas.picture(
            title,
            f"Mean loss in nats per supervised token, one line per seed (n = {len(points):,} steps in all; "
            f"lines longer than {_MOST_POINTS} steps are thinned).",
            "Loss over optimizer steps, one panel per training stage, one line per defense and seed",
        )


def _thinned(line: list[tuple[int, float]]) -> list[tuple[int, float]]:
    step = -(-len(line) // _MOST_POINTS)
    return [*line[:-1:step], line[-1]]


def _panels(canvas: Canvas, names: Sequence[str], released: str) -> Iterator[tuple[Axes, str]]:
    """Give one panel per name, three in a line, titled."""
    per_line = min(3, len(names))
    lines = -(-len(names) // per_line)
    panels = canvas.figure.subplots(lines, per_line, squeeze=False, sharey=True).flat
    for index, axes in enumerate(panels):
        if index >= len(names):
            axes.set_visible(False)
            continue
        axes.set_title(released if names[index] == "none" else short(names[index]))
        axes.grid(visible=True)
        yield axes, names[index]


def _line_legend(canvas: Canvas, colors: dict[str, Color], names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=colors[d].light, linestyle=_DASHES[i % len(_DASHES)], label=short(d, 22)
        )
        for i, d in enumerate(names)
    ]
    columns = min(6, len(handles))
    canvas.figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, handlelength=2.4
    )


def similarity(grid: Grid) -> Picture | Blank:
    """Return how alike the prompts and the irrelevant answers of the defense's pairs are."""
    title = "Pairing: similarity of prompt and answer"
    values = [pair["similarity"] for pair in grid.run.rows("pairs")]
    if not values:
        return Blank(title, "tables/pairs.parquet is absent or empty: no pairs were trained on")
    with drawing("similarity", WIDTH, 2.1) as canvas:
        axes = canvas.figure.add_subplot()
        edges = [i / 40 for i in range(-20, 41)]
        axes.hist(
            values, bins=edges, color=series(["none", "sdd"])["sdd"].light, edgecolor=PAPER.light
        )
        axes.set_xlim(-0.5, 1)
        axes.grid(visible=True, axis="y")
        axes.set_xlabel("cosine of prompt and answer")
        axes.set_ylabel("pairs")
        if grid.threshold is not None:
            axes.axvline(grid.threshold, color=INK.light, linewidth=0.9, linestyle=(0, (3, 2)))
        line = "" if grid.threshold is None else f"; dashed: the threshold, {grid.threshold:g}"
        return canvas.picture(
            title,
            f"n = {len(values):,} pairs, all seeds{line}.",
            f"Histogram of {len(values)} similarities from {min(values):.2f} to {max(values):.2f}",
        )
