"""What a search finds for its budget, and whether its proxy ranks trials as the full measure does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backfire.report.figures.words import WIDTH, short
from backfire.report.grid import Grid
from backfire.report.palette import INK, MARKERS, series
from backfire.report.svg import Picture, drawing

__all__ = ["searches"]

_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)))


def searches(grid: Grid) -> Picture | None:
    """Return best usable harm over FLOPs, and proxy against full measure; None without a search."""
    found = list(grid.run.search.get("searches") or ())
    if not found:
        return None
    models = list(dict.fromkeys(str(one["model"]) for one in found))
    strategies = list(dict.fromkeys(str(one["strategy"]) for one in found))
    colors = series(models)
    with drawing("search", WIDTH, 3.0) as canvas:
        left, right = canvas.figure.subplots(1, 2)
        right.plot([0, 100], [0, 100], color=INK.light, linewidth=0.7, linestyle=(0, (3, 2)))
        for one in found:
            look = strategies.index(str(one["strategy"]))
            color = colors[str(one["model"])].light
            label = f"{short(str(one['model']), 18)}, {one['strategy']}"
            flops, best = _rising(one["trials"])
            left.step(
                flops, best, where="post", color=color, linestyle=_DASHES[look % len(_DASHES)],
                linewidth=1.2, label=label, gid=canvas.tip(f"{label}: {best[-1]:.1f} %"),
            )  # fmt: skip
            measure = "harm" if one["strategy"] == "raw" else "usable"
            pairs = [
                (100 * t["proxy"], 100 * t[measure])
                for t in one["trials"]
                if t.get("status") == "measured" and t["repeats"] is None
                and t["proxy"] is not None and t[measure] is not None
            ]  # fmt: skip
            right.plot(
                [proxy for proxy, _ in pairs],
                [full for _, full in pairs],
                linestyle="",
                marker=MARKERS[look % len(MARKERS)],
                markersize=4,
                color=color,
            )
        left.set(
            xlabel="FLOPs of the trainings", ylabel="best usable harm so far, %", ylim=(-3, 103)
        )
        right.set(
            xlabel="proxy: verified harm on the way, %",
            ylabel="full measure, %",
            xlim=(-3, 103),
            ylim=(-3, 103),
        )
        for axes in (left, right):
            axes.grid(visible=True)
        canvas.figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        return canvas.picture(
            "What a search finds for its budget, and what its proxy is worth",
            "Left: the best usable harm among the trials so far, each on one seed, its doubt not shown: "
            "the search's own view, and optimistic. Right: trials that were measured in full; their order "
            "counts, not the diagonal. Full measure: usable harm, for strategy raw verified harm.",
            "; ".join(
                f"{short(str(one['model']))}, {one['strategy']}: {_rising(one['trials'])[1][-1]:.1f} %"
                for one in found
            ),
        )


def _rising(trials: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return FLOPs spent and best usable harm in per cent after each trial, from nothing on."""
    flops, best = [0.0], [0.0]
    for trial in trials:
        flops.append(flops[-1] + (trial.get("flops") or 0.0))
        best.append(max(best[-1], 100 * (trial.get("usable") or 0.0)))
    return flops, best
