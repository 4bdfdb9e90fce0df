"""The theory's figures: where statements hold, and how good the formulas are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backfire.report.palette import INK, MARKERS, MUTED, WARM, series
from backfire.report.svg import Picture, drawing
from backfire.theory.exact import exact_accuracy
from backfire.theory.features import Features, output_ensemble, single, weight_ensemble
from backfire.theory.learned import Fit, learned_check
from backfire.theory.region import (
    Sampling,
    enough_invariant_ratio,
    falls_without_overlap,
    invariant_needed,
    share_that_falls,
)
from backfire.theory.simulate import simulated_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["all_figures"]

_SHIFTS = (1.0, 0.99, 0.95, 0.9, 0.7)


def all_figures() -> list[Picture]:
    """Return every figure, in the page's order; takes some seconds."""
    return [ratios(), needed(), shares(), path(), limit_gap(), fitted()]


def ratios() -> Picture:
    """Draw where accuracy falls, over the two ratios Theorem 2 speaks of."""
    per_feature = 5.0
    with drawing("ratios", 6.2, 4.4) as canvas:
        axes = canvas.figure.subplots()
        axes.fill_between([0, 1], 1, 1000, color=WARM.light, zorder=0)
        r_v, r_s = np.linspace(0, 1.25, 500), np.geomspace(0.8, 1000, 800)
        shifts = (1.0, 0.99, 0.95, 0.92)
        colors = series([str(p) for p in shifts])
        for p, label_at in zip(shifts, (0.72, 0.72, 0.36, 0.12), strict=True):
            pull = (1 - p) * per_feature
            falls = falls_without_overlap(pull, r_v[None, :], r_s[:, None])
            color = colors[str(p)].light
            axes.contour(r_v, r_s, falls.astype(float), [0.5], colors=[color], linewidths=1.5)
            # At p = 1 the region has no upper edge; its label goes to the lower one.
            column = falls[:, np.searchsorted(r_v, label_at)]
            edge = len(r_s) - 1 - column[::-1].argmax() if p < 1 else column.argmax()
            axes.annotate(
                f"p = {p:g}", (label_at, r_s[edge]), xytext=(0, 3 if p < 1 else -4),
                textcoords="offset points", color=color, va="bottom" if p < 1 else "top",
            )  # fmt: skip
        axes.plot(0.9, 1.01, "x", color=INK.light, markersize=7, markeredgewidth=1.6)
        axes.annotate(
            "counter-example", (0.9, 1.01), xytext=(8, 0), textcoords="offset points", va="center"
        )
        enough = float(enough_invariant_ratio())
        axes.set(
            yscale="log", xlim=(0, 1.25), ylim=(0.8, 1000),
            xlabel="r_v = attacker's / aligned model's invariant features",
            ylabel="r_s = attacker's / aligned model's spurious features",
        )  # fmt: skip
        _plain_log(axes, (1, 3, 10, 30, 100, 300, 1000))
        return canvas.picture(
            "Where the attack lowers accuracy",
            "Accuracy falls inside each line: to its left, and above its lower but below its upper edge. "
            "Theorem 2's premises are the tinted area (r_v below 1, r_s above 1); where it lies outside "
            "of a line they hold and accuracy rises all the same. Even interpolation, no shared features, "
            f"{per_feature:g} spurious features an invariant one in the aligned model. At p = 1 there is "
            f"no upper edge and the premises suffice up to r_v = {enough:.3f}; below 1, very many "
            "spurious features of the attacker's diversify and help. The cross, (0.9, 1.01), is the "
            "counter-example of the text.",
            "The region in which accuracy falls is unbounded at p = 1 and shrinks quickly as p falls.",
        )


def needed() -> Picture:
    """Draw how many invariant features a defense must give the aligned model."""
    optimal = Features(3, 150)
    n_s = np.linspace(1, 300, 600)
    with drawing("needed", 6.2, 3.9) as canvas:
        axes = canvas.figure.subplots()
        colors = series([str(p) for p in _SHIFTS])
        axes.axvspan(0, 150, color=WARM.light, zorder=0)
        for p in _SHIFTS[:-1]:
            value = invariant_needed(n_s, optimal, p)
            axes.plot(n_s, value, color=colors[str(p)].light)
            at = np.flatnonzero(value < 58)[-1]
            axes.annotate(
                f"p = {p:g}", (n_s[at], value[at]), xytext=(3, 0), textcoords="offset points",
                color=colors[str(p)].light, va="center" if at == len(n_s) - 1 else "top",
            )  # fmt: skip
        axes.axhline(3, color=MUTED.light, linewidth=1, linestyle=":")
        axes.annotate("n*_v", (298, 3), ha="right", va="bottom", color=MUTED.light)
        axes.set(
            xlim=(0, 300), ylim=(0, 60), xlabel="spurious features of the aligned model, n_s",
            ylabel="invariant features needed, n_v",
        )  # fmt: skip
        return canvas.picture(
            "What a defense would have to reach",
            "Above its line the attack lowers accuracy, below it raises it. The attacker's near-optimal "
            "model has 3 invariant (dotted) and 150 spurious features; even interpolation, no shared "
            "features. Tinted: Theorem 2's premise on spurious features. Few spurious features of its own "
            "make the aligned model easy to hurt; away from p = 1 the demand on invariant features grows "
            "quickly.",
            "The number of invariant features needed grows with n_s and falls with p.",
        )


def shares() -> Picture:
    """Draw the share of the premise box in which accuracy falls, against p."""
    p = np.concatenate([np.linspace(0.7, 0.9, 11), np.linspace(0.91, 1.0, 28)])
    names: dict[str, Sampling] = {
        "n*_v, n*_s drawn given n_v, n_s": "conditional",
        "uniform over the premise region": "rejection",
    }
    with drawing("shares", 6.2, 3.4) as canvas:
        axes = canvas.figure.subplots()
        colors = series(list(names))
        for index, (name, sampling) in enumerate(names.items()):
            found = share_that_falls(list(p), sampling, draws=100_000)
            axes.plot(p, [100 * s.value for s in found], color=colors[name].light, label=name)
            marked = share_that_falls(_SHIFTS, sampling, draws=400_000)
            for shift, share in zip(_SHIFTS, marked, strict=True):
                axes.plot(
                    shift, 100 * share.value, MARKERS[index], color=colors[name].light, markersize=5,
                    gid=canvas.tip(f"p = {shift:g}: {100 * share.value:.2f} % ({name})"),
                )  # fmt: skip
        axes.grid(axis="y")
        axes.legend(loc="upper left")
        axes.set(
            xlim=(0.69, 1.005), ylim=(0, 100), xlabel="p, probability that a spurious feature moves",
            ylabel="share in which accuracy falls (%)",
        )  # fmt: skip
        return canvas.picture(
            "How often the premises lead to the conclusion",
            "Box: n_v in [1, 20], n_s in [20, 200], n*_v below n_v, n*_s between n_s and 400; even "
            "interpolation, no shared features; 400,000 cases a marker (standard error below 0.1 "
            "points). The share depends on how the box is filled, so both ways are shown.",
            "About 80 percent at p = 1, about 10 percent at p = 0.9.",
        )


def path() -> Picture:
    """Draw accuracy along the interpolation, formula against counting."""
    first, second, shared, p, k = Features(5, 40), Features(3, 80), Features(1, 6), 0.95, 4
    weight = np.linspace(0, 1, 201)
    kinds = {"weights": weight_ensemble, "outputs": output_ensemble}
    with drawing("path", 6.2, 3.6) as canvas:
        axes = canvas.figure.subplots()
        colors = series(list(kinds))
        for index, (name, build) in enumerate(kinds.items()):
            color = colors[name].light
            formula = build(first, second, shared, weight).accuracy(p, k)
            axes.plot(weight, formula, color=color, label=f"interpolated {name}: F_p")
            for at in np.linspace(0, 1, 11):
                drawn = simulated_accuracy(
                    build(first, second, shared, at), p, k, draws=100_000
                ).random_ties
                axes.errorbar(
                    at, drawn.value, 1.96 * drawn.standard_error, fmt=MARKERS[index], color=color,
                    markersize=4, linewidth=1,
                )  # fmt: skip
        axes.grid(axis="y")
        axes.legend(loc="lower center")
        axes.set(
            xlim=(-0.02, 1.02), xlabel="share of the first model (0: second alone, 1: first alone)",
            ylabel="accuracy after the shift",
        )  # fmt: skip
        return canvas.picture(
            "Accuracy between two models",
            "Lines: the limit formula. Markers: 100,000 draws with finitely many features, ties broken at "
            "random, 95 % intervals. First model 5 invariant and 40 spurious features, second 3 and 80, "
            "shared 1 and 6; p = 0.95, four classes. The formula runs about one point above; between the "
            "models accuracy exceeds both ends, which is why spurious features can help.",
            "Both ensembles peak between the end points.",
        )


def limit_gap() -> Picture:
    """Draw how far the limit formula lies above the exact accuracy."""
    counts = np.unique(np.geomspace(5, 400, 18).astype(int))
    classes = ("2", "4", "10", "20")
    with drawing("limit-gap", 6.2, 3.4) as canvas:
        axes = canvas.figure.subplots()
        colors = series(classes)
        for index, name in enumerate(classes):
            k = int(name)
            gaps = []
            for n_s in counts:
                model = single(Features(max(1, round(0.6 * n_s**0.5)), int(n_s)))
                exact = exact_accuracy(model, 0.9, k).random_ties
                gaps.append(float(model.accuracy(0.9, k)) - exact)
            axes.plot(
                counts, gaps, f"{MARKERS[index]}-", color=colors[name].light, markersize=3.5,
                linewidth=1, label=f"K = {name}",
            )  # fmt: skip
        axes.axhline(0, color=MUTED.light, linewidth=0.7)
        axes.grid(axis="y")
        axes.legend(ncols=4, loc="upper right")
        axes.set(xscale="log", xlabel="spurious features, n_s", ylabel="F_p minus exact accuracy")
        _plain_log(axes, (5, 10, 20, 50, 100, 200, 400), x=True)
        return canvas.picture(
            "What the limit formula leaves out",
            "F_p minus the exact accuracy (ties broken at random) at p = 0.9 for a model with about "
            "0.6 sqrt(n_s) invariant features. The formula is optimistic as long as ties are likely; "
            "the steps come from rounding the invariant features to whole numbers.",
            "The gap shrinks with the number of spurious features and is hardly ever below zero.",
        )


def fitted() -> Picture:
    """Draw predictions against models that were fitted and interpolated."""
    fits: dict[str, Fit] = {"class means": "means", "network": "network"}
    with drawing("fitted", 6.2, 3.6) as canvas:
        axes = canvas.figure.subplots()
        colors = series(list(fits))
        for index, (name, fit) in enumerate(fits.items()):
            points = learned_check(
                Features(2, 12), Features(1, 18), Features(0, 2), 0.9, 3, fit,
                weights=tuple(np.linspace(0, 1, 6)), train=400, draws=60_000,
            )  # fmt: skip
            at = [q.weight for q in points]
            color = colors[name].light
            if index == 0:
                axes.plot(
                    at, [q.counted.value for q in points], color=INK.light, linewidth=1,
                    linestyle=":", label="theory's weights, finite",
                )  # fmt: skip
            axes.plot(
                at, [q.fitted_counted.value for q in points], color=color, linewidth=1,
                label=f"{name}: its own weights, finite",
            )  # fmt: skip
            axes.errorbar(
                at, [q.measured.value for q in points],
                [1.96 * q.measured.standard_error for q in points], fmt=MARKERS[index], color=color,
                markersize=4, linewidth=1, label=f"{name}: measured",
            )  # fmt: skip
        axes.grid(axis="y")
        axes.legend(loc="lower right")
        axes.set(
            xlim=(-0.02, 1.02), xlabel="share of the first model", ylabel="accuracy after the shift"
        )
        return canvas.picture(
            "Models that were really fitted",
            "Two models are fitted on 400 noisy examples each, their weights interpolated, the result "
            "measured on 60,000 shifted examples (95 % intervals). Class means give the theory's weights; "
            "a network trained end to end finds its own scale, and follows the formula at the weights it "
            "has, not at the ones the theory presumes.",
            "Measured accuracies lie on the predictions with fitted weights.",
        )


def _plain_log(axes: Axes, ticks: tuple[int, ...], x: bool = False) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import NullLocator

    axis = axes.xaxis if x else axes.yaxis
    axis.set_ticks(ticks, [str(t) for t in ticks])
    axis.set_minor_locator(NullLocator())
