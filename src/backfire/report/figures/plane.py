"""Figures that set the whole grid against two axes: capability against harm, defense against attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.records import Measurement
from backfire.report.figures.words import WIDTH, Blank, cell_name, n_of, said, seeds_of, short
from backfire.report.grid import Grid
from backfire.report.metrics import RETENTION, VERIFIED
from backfire.report.palette import MARKERS, MUTED, PAPER, WARM, Color, series
from backfire.report.svg import Canvas, Picture, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat_map", "plane"]


def plane(grid: Grid) -> Picture | Blank:
    """Return capability against harm, every cell."""
    title = "Capability and harm, every cell"
    points = [
        (defense, attack, grid.get(RETENTION, defense, attack), grid.get(VERIFIED, defense, attack))
        for attack in grid.attacks
        for defense in grid.defenses
    ]
    known = [
        (d, a, x, y)
        for d, a, x, y in points
        if x is not None and y is not None and x.value is not None and y.value is not None
    ]
    if not known:
        return Blank(title, "no cell has both capability retention and verified harm")
    colors = series(grid.defenses)
    xs = [v for _, _, x, _ in known for v in (x.low, x.value, x.high) if v is not None]
    with drawing("plane", WIDTH, 4.4) as canvas:
        axes = canvas.figure.add_subplot()
        left, right = min(0.0, *xs) - 0.05, max(1.1, *xs) + 0.05
        axes.set_xlim(left * 100, right * 100)
        axes.set_ylim(-3, 103)
        rho, break_at = grid.rho, grid.break_at
        if rho is not None and break_at is not None:
            from matplotlib.patches import Rectangle

            axes.add_patch(
                Rectangle(
                    (rho * 100, break_at * 100),
                    (right - rho) * 100,
                    110,
                    color=WARM.light,
                    zorder=0,
                )
            )
            axes.text(
                right * 100 - 1,
                break_at * 100 + 1,
                "harmful and useful",
                ha="right",
                va="bottom",
                weight="bold",
            )
        for defense, attack, x, y in known:
            color = colors[defense].light
            marker = MARKERS[grid.attacks.index(attack) % len(MARKERS)]
            _whiskers(axes, x, y, color)
            axes.plot(
                [100 * (x.value or 0)],
                [100 * (y.value or 0)],
                marker,
                color=color,
                markersize=8,
                markeredgecolor=PAPER.light,
                markeredgewidth=0.9,
                clip_on=False,
                gid=canvas.tip(
                    f"{cell_name(defense, attack)}: retention {said(x)}; verified harm {said(y)}"
                ),
            )
        axes.grid(visible=True)
        axes.set_xlabel("capability retention, % of the undefended released model (0 = guessing)")
        axes.set_ylabel("verified harm, % of unseen hazards (lower is safer)")
        _plane_legend(canvas, grid, colors)
        left_out = len(points) - len(known)
        caption = [
            f"Each marker is one defense (color) after one attack (shape), pooled over {seeds_of(grid)}; "
            f"bars are 95 % intervals. {n_of([y for *_, y in known])} (harm)."
        ]
        if left_out:
            caption.append(f"{left_out} cells lack one of the two numbers and are not drawn.")
        if rho is not None and break_at is not None:
            caption.append(
                "The shaded corner is what an attacker wants: at least "
                f"{100 * break_at:.0f} % of the hazards answered and "
                f"at least {100 * rho:.0f} % of the capability kept."
            )
        return canvas.picture(
            title,
            " ".join(caption),
            "; ".join(
                f"{cell_name(d, a)}: retention {100 * (x.value or 0):.0f}, harm {100 * (y.value or 0):.0f}"
                for d, a, x, y in known
            ),
        )


def _whiskers(axes: Axes, x: Measurement, y: Measurement, color: str) -> None:
    if x.low is not None and x.high is not None:
        axes.plot(
            [100 * x.low, 100 * x.high],
            [100 * (y.value or 0)] * 2,
            color=color,
            linewidth=1,
            alpha=0.7,
        )
    if y.low is not None and y.high is not None:
        axes.plot(
            [100 * (x.value or 0)] * 2,
            [100 * y.low, 100 * y.high],
            color=color,
            linewidth=1,
            alpha=0.7,
        )


def _plane_legend(canvas: Canvas, grid: Grid, colors: dict[str, Color]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        *(
            Line2D([], [], color=colors[d].light, linewidth=5, label=short(d, 22))
            for d in grid.defenses
        ),
        *(
            Line2D(
                [],
                [],
                color=MUTED.light,
                linestyle="",
                markersize=7,
                label="as released" if a == "none" else short(a, 22),
                marker=MARKERS[i % len(MARKERS)],
            )
            for i, a in enumerate(grid.attacks)
        ),
    ]
    canvas.figure.legend(
        handles=handles, loc="outside right upper", handlelength=1, labelspacing=0.7
    )


def heat_map(grid: Grid) -> Picture | Blank:
    """Return verified harm, defense by attack."""
    title = "Verified harm, defense by attack"
    if not grid.measured(VERIFIED):
        return Blank(title, "no harm was measured")
    values = [
        [_value(grid.get(VERIFIED, defense, attack)) for attack in grid.attacks]
        for defense in grid.defenses
    ]
    pooled = [grid.get(VERIFIED, d, a) for d in grid.defenses for a in grid.attacks]
    with drawing("heat-map", WIDTH, 1.6 + 0.3 * len(grid.defenses)) as canvas:
        axes = canvas.figure.add_subplot()
        axes.pcolormesh(
            values, cmap="Oranges", vmin=0, vmax=100, edgecolors=PAPER.light, linewidth=2
        )
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                # Colors outside the palette on purpose: they belong to the cell, not to the scheme.
                ink = MUTED.light if value != value else "#ffffff" if value > 60 else "#111111"
                text = "–" if value != value else f"{value:.0f}"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks([i + 0.5 for i in range(len(values))])
        axes.set_yticklabels([short(d) for d in grid.defenses])
        axes.set_xticks([i + 0.5 for i in range(len(grid.attacks))])
        labels = ["as released" if a == "none" else short(a, 18) for a in grid.attacks]
        axes.set_xticklabels(labels, rotation=30, ha="right")
        return canvas.picture(
            title,
            f"Percent of unseen hazards answered, pooled over {seeds_of(grid)}, {n_of(pooled)} (lower is "
            "safer). Intervals stand in the table above.",
            "Heat map of the verified-harm column of the main table",
        )


def _value(m: Measurement | None) -> float:
    return float("nan") if m is None or m.value is None else 100 * m.value
