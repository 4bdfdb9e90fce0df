"""What an attacker gets for his money: harm and kept capability against every unit of budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from backfire.records import BUDGETS, Measurement
from backfire.report.figures.words import WIDTH, Blank, cell_name, n_of, said, seeds_of, short
from backfire.report.grid import CONTROL, Grid
from backfire.report.metrics import RETENTION, USABLE, VERIFIED
from backfire.report.palette import INK, MARKERS, Color, series
from backfire.report.svg import Canvas, Picture, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["budgets"]

_ROWS = {VERIFIED: "verified harm, %", USABLE: "usable harm, %", RETENTION: "retention, %"}
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))


def budgets(grid: Grid) -> Picture | Blank:
    """Return harm, usable harm and retention against shots, steps, tokens and FLOPs."""
    title = "What an attacker gets for a budget"
    metrics = [metric for metric in _ROWS if grid.measured(metric)]
    units = [unit for unit in BUDGETS if _curves(grid, unit)]
    if not metrics or not units:
        return Blank(
            title,
            "no kind of attack was measured at two budgets; give attacks `points`, or several `shots`",
        )
    tiers = list(dict.fromkeys(tier for unit in units for tier, _ in _curves(grid, unit)))
    colors = series(grid.defenses)
    with drawing("budgets", WIDTH, 1.75 * len(metrics) + 0.55) as canvas:
        panels = canvas.figure.subplots(
            len(metrics), len(units), squeeze=False, sharex="col", sharey="row"
        )
        for line, metric in enumerate(metrics):
            for column, unit in enumerate(units):
                axes = panels[line][column]
                curves = _curves(grid, unit)
                _axis(axes, unit, curves.values(), last=line + 1 == len(metrics))
                if column == 0:
                    axes.set_ylabel(_ROWS[metric])
                axes.set_ylim(-3, 128 if metric == RETENTION else 103)
                level = grid.rho if metric == RETENTION else grid.break_at
                if level is not None:
                    axes.axhline(100 * level, color=INK.light, linewidth=0.7, linestyle=(0, (3, 2)))
                for (tier, defense), points in curves.items():
                    look = tiers.index(tier)
                    _line(canvas, axes, grid, metric, points, defense, colors[defense], look)
        _legend(canvas, colors, grid.defenses, tiers)
        pooled = [grid.get(metrics[0], d, a) for d in grid.defenses for a in grid.attacks]
        return canvas.picture(
            title,
            f"Each line is one kind of attack on one model; its first point, at 0, is the model before any "
            f"attack. Bars: 95 % intervals; pooled over {seeds_of(grid)}, {n_of(pooled)}; dashed: where a "
            "defense counts as broken, and the retention from which harm is usable. Lines join what was "
            "measured; nothing between is known.",
            "; ".join(
                f"{cell_name(d, a)}: {said(m)}"
                for d in grid.defenses
                for a in grid.attacks
                if (m := grid.get(metrics[0], d, a)) is not None
            ),
        )


def _curves(grid: Grid, unit: str) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """Return budget and attack, budgets rising, by tier and defense; only tiers with two budgets."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for (defense, attack), (tier, spent) in grid.spent.items():
        if spent.get(unit) is not None:
            found.setdefault((tier, defense), []).append((spent[unit], attack))
    several = {
        key: sorted(points) for key, points in found.items() if len({b for b, _ in points}) > 1
    }
    return {key: [(0.0, CONTROL), *points] for key, points in several.items()}


def _axis(axes: Axes, unit: str, curves: Iterable[list[tuple[float, str]]], *, last: bool) -> None:
    positive = [b for points in curves for b, _ in points if b > 0]
    if max(positive) / min(positive) > 20:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    else:
        axes.set_xlim(-0.04 * max(positive), 1.06 * max(positive))
    axes.grid(visible=True)
    axes.margins(x=0.08)
    if last:
        axes.set_xlabel(BUDGETS[unit])
        axes.tick_params(axis="x", labelrotation=30)


def _line(
    canvas: Canvas, axes: Axes, grid: Grid, metric: str, points: list[tuple[float, str]],
    defense: str, color: Color, look: int,
) -> None:  # fmt: skip
    """Draw one curve, each point with its interval and tooltip."""
    known: list[tuple[float, str, Measurement]] = []
    for budget, attack in points:
        m = grid.get(metric, defense, attack)
        if m is not None and m.value is not None:
            known.append((budget, attack, m))
    axes.plot(
        [budget for budget, _, _ in known],
        [100 * (m.value or 0) for _, _, m in known],
        color=color.light,
        linestyle=_DASHES[look % len(_DASHES)],
        linewidth=1.2,
    )
    for budget, attack, m in known:
        value = 100 * (m.value or 0)
        if m.low is not None and m.high is not None:
            axes.plot(
                [budget, budget],
                [100 * m.low, 100 * m.high],
                color=color.light,
                linewidth=0.8,
                alpha=0.6,
            )
        axes.plot(
            [budget],
            [value],
            marker=MARKERS[look % len(MARKERS)],
            markersize=4,
            color=color.light,
            gid=canvas.tip(f"{cell_name(defense, attack)}: {said(m)}"),
        )


def _legend(
    canvas: Canvas, colors: dict[str, Color], defenses: Sequence[str], tiers: Sequence[str]
) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colors[d].light, label=short(d, 22)) for d in defenses]
    kinds = [
        Line2D(
            [], [], color=INK.light, linestyle=_DASHES[i % len(_DASHES)],
            marker=MARKERS[i % len(MARKERS)], markersize=4, label=short(tier, 34),
        )
        for i, tier in enumerate(tiers)
    ]  # fmt: skip
    canvas.figure.legend(
        handles=[*lines, *kinds], loc="outside upper center", ncols=3, handlelength=2.6
    )
