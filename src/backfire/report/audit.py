"""The page on judges: confusion, agreement, flips, as figures and tables, from plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backfire.records import Measurement
from backfire.report.document import dressed, render
from backfire.report.figures.words import WIDTH, said, short
from backfire.report.palette import GRID, INK, MUTED, PAPER, TAXONOMY, series
from backfire.report.svg import Canvas, Picture, drawing
from backfire.report.tables import Column, Table, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["audit_figures", "audit_html", "audit_tables"]

_RATES = {
    "precision": "precision, %\n(of those called harmful)",
    "recall": "recall, %\n(of those labelled harmful)",
    "false_positive_rate": "false positives, %\n(of those labelled harmless)",
}

_CONFUSION = {
    "true_positive": ("called harmful, labelled harmful", TAXONOMY["harmful and useful"]),
    "false_negative": ("called harmless, labelled harmful", TAXONOMY["harmful but useless"]),
    "false_positive": ("called harmful, labelled harmless", TAXONOMY["incoherent"]),
    "true_negative": ("called harmless, labelled harmless", TAXONOMY["refusal"]),
}


def audit_html(record: Mapping[str, Any]) -> str:
    """Return one self-contained page.

    Args:
        record: As `backfire.judge_audit.audit_record` gives it.
    """
    return render(
        "audit.html.j2",
        **dressed(),
        source=record["source"],
        meta=_meta(record),
        sentence=_sentence(record),
        notes=_notes(record),
        figures=audit_figures(record),
        tables=audit_tables(record),
    )


# --------------------------------------------------------------------------------------------- words


def _meta(record: Mapping[str, Any]) -> list[str]:
    return [
        counted(record["answers"], "answer"),
        f"labels: {record['reference']}" if record["reference"] else "no labels",
        *(f"{name}: version {version}" for name, version in record["judges"].items()),
    ]


def _sentence(record: Mapping[str, Any]) -> str:
    rows = [row for row in record["accuracy"] if row["kappa"] is not None]
    if rows:
        parts = [
            f"{row['judge']} kappa {row['kappa']:.2f} ({row['kappa_low']:.2f} to {row['kappa_high']:.2f})"
            for row in rows
        ]
        return f"Against the labels: {'; '.join(parts)}."
    pairs = [row for row in record["agreement"] if row["kappa"] is not None]
    if not pairs:
        return "No two raters can be compared: each calls every answer the same, or none."
    worst = min(pairs, key=lambda row: row["kappa"])
    return (
        f"The raters that agree least are {worst['first']} and {worst['second']}: kappa "
        f"{worst['kappa']:.2f} ({worst['kappa_low']:.2f} to {worst['kappa_high']:.2f})."
    )


def _notes(record: Mapping[str, Any]) -> list[str]:
    notes = [
        "Intervals are 95 %; answers to one prompt are resampled together. Several judges and rates are "
        "compared at once, and the intervals are not widened for that."
    ]
    if record["accuracy"]:
        notes.append(
            "Length alone guesses from the number of words, with a threshold found on other prompts: a "
            "judge that does no better may see nothing else."
        )
    notes += [
        f"{judge} gave no verdict on {counted(count, 'answer')}: {reason}."
        for judge, reasons in record["absent"].items()
        for reason, count in reasons.items()
    ]
    notes += [
        f"{counted(count, 'row')} left out: {reason}."
        for reason, count in record["left_out"].items()
    ]
    return notes


# -------------------------------------------------------------------------------------------- tables


def audit_tables(record: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the page."""
    rate = {"scale": 100.0, "digits": 1, "span": (0.0, 1.0)}
    agree = {"digits": 2, "span": (-1.0, 1.0), "mark": 0.0, "hint": "1 full agreement\n0 chance"}
    return [
        Table(
            "accuracy",
            "Against the labels",
            [
                Column("judge", "judge", kind="text"),
                Column("n", "n", "rated and labelled"),
                Column("absent", "absent"),
                *(Column(key, key.replace("_", " ")) for key in _CONFUSION),
                *(Column(key, key.replace("_", " "), "%", **rate) for key in _RATES),  # type: ignore[arg-type]
                Column("kappa", "kappa", **agree),  # type: ignore[arg-type]
            ],
            [_cells(row, (*_RATES, "kappa")) for row in record["accuracy"]],
            "Positive means harmful.",
        ),
        Table(
            "agreement",
            "Against each other",
            [
                Column("first", "rater", kind="text"),
                Column("second", "rater", kind="text"),
                Column("n", "n", "rated by both"),
                Column("absent", "absent"),
                Column("both", "both", "call it harmful"),
                Column("first_only", "first only"),
                Column("second_only", "second only"),
                Column("neither", "neither"),
                Column("observed", "agree", "%", **rate),  # type: ignore[arg-type]
                Column("kappa", "kappa", **agree),  # type: ignore[arg-type]
            ],
            [_cells(row, ("observed", "kappa")) for row in record["agreement"]],
            "Columns of labels count as raters.",
        ),
        Table(
            "flips",
            "Verdicts flipped by a suffix",
            [
                Column("judge", "judge", kind="text"),
                Column("suffix", "suffix", kind="text"),
                Column("n", "n", "judged before and after"),
                Column("absent", "absent", "no verdict after"),
                Column("to_harmless", "to harmless"),
                Column("to_harmful", "to harmful"),
                Column("flipped", "flipped", "%", **rate),  # type: ignore[arg-type]
            ],
            [_cells(row, ("flipped",)) for row in record["flips"]],
            "The suffix leaves the answer's content as it is, so a sound judge does not change its mind.",
        ),
    ]


def _cells(row: Mapping[str, Any], estimates: Sequence[str]) -> dict[str, Any]:
    return {**row, **{key: _measured(row, key) for key in estimates}}


def _measured(row: Mapping[str, Any], key: str) -> Measurement:
    return Measurement(
        "", "", None, key, row[key], row[f"{key}_low"], row[f"{key}_high"], row["n"],
        note="" if row[key] is not None else "not defined on these rows",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- figures


def audit_figures(record: Mapping[str, Any]) -> list[Picture]:
    """Return the figures of the page, those with something to show."""
    drawn = [_rates(record["accuracy"]), _confusion(record["accuracy"]), _matrix(record)]
    return [picture for picture in (*drawn, _flips(record["flips"])) if picture is not None]


def _rates(rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Return precision, recall and false positives of each judge."""
    if not rows:
        return None
    with drawing("rates", WIDTH, 0.34 * len(rows) + 0.8) as canvas:
        panels = canvas.figure.subplots(1, len(_RATES), sharey=True, squeeze=False)[0]
        for axes, (key, title) in zip(panels, _RATES.items(), strict=True):
            _rows_axis(axes, [row["judge"] for row in rows])
            _percent(axes, title)
            for place, row in enumerate(rows):
                _dot(canvas, axes, _measured(row, key), place, f"{row['judge']}: {key}")
        return canvas.picture(
            "How often each judge is right",
            f"Dot: the share; bar: 95 % interval. {_n_of(rows)}.",
            "; ".join(f"{row['judge']}: recall {said(_measured(row, 'recall'))}" for row in rows),
        )


def _confusion(rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Return each judge's confusion with the labels, as stacked bars."""
    if not rows:
        return None
    with drawing("confusion", WIDTH, 0.34 * len(rows) + 0.95) as canvas:
        axes = canvas.figure.add_subplot()
        _rows_axis(axes, [row["judge"] for row in rows])
        _percent(axes, "% of answers")
        axes.grid(visible=False)
        for key, (words, color) in _CONFUSION.items():
            for place, row in enumerate(rows):
                before = list(_CONFUSION)[: list(_CONFUSION).index(key)]
                if row["n"]:
                    axes.barh(
                        [place],
                        [100 * row[key] / row["n"]],
                        left=[100 * sum(row[k] for k in before) / row["n"]],
                        height=0.7,
                        color=color.light,
                        hatch=color.hatch,
                        edgecolor=PAPER.light,
                        linewidth=0.8,
                        label=words if place == 0 else None,
                        gid=canvas.tip(f"{row['judge']}: {words}, {row[key]} of {row['n']}"),
                    )
        canvas.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2)
        return canvas.picture(
            "Confusion with the labels",
            f"{_n_of(rows)}. The two classes in the middle are the judge's mistakes.",
            "; ".join(
                f"{row['judge']}: {row['false_negative']} missed, {row['false_positive']} false alarms"
                for row in rows
            ),
        )


def _matrix(record: Mapping[str, Any]) -> Picture | None:
    """Return kappa of every pair of raters."""
    pairs = {(row["first"], row["second"]): row for row in record["agreement"]}
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    if not names:
        return None
    size = 0.62 * len(names)
    with drawing("kappa", WIDTH, max(1.9, size + 0.9)) as canvas:
        axes = canvas.figure.add_subplot()
        _rows_axis(axes, names)
        axes.set_xticks(range(len(names)), [short(name, 16) for name in names], rotation=30)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        fill = series(["a"])["a"].light
        for (first, second), row in pairs.items():
            value = row["kappa"]
            column, line = names.index(first), names.index(second)
            axes.bar(
                [column], [0.96], width=0.96, bottom=line - 0.48, color=fill, linewidth=0,
                alpha=0.0 if value is None else 0.55 * max(0.0, value),
                gid=canvas.tip(f"{first} and {second}: kappa {said(_measured(row, 'kappa'), 1)}"),
            )  # fmt: skip
            axes.text(
                column, line, "-" if value is None else f"{value:.2f}", ha="center", va="center",
                color=INK.light,
            )  # fmt: skip
        return canvas.picture(
            "Agreement of every pair",
            "Cohen's kappa: 1 is full agreement, 0 that of chance. Columns of labels count as raters.",
            "; ".join(
                f"{a} and {b}: {said(_measured(row, 'kappa'), 1)}" for (a, b), row in pairs.items()
            ),
        )


def _flips(rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Return the share of verdicts each suffix flips, by judge."""
    if not rows:
        return None
    names = [f"{row['judge']}, {row['suffix']}" for row in rows]
    with drawing("flips", WIDTH, 0.3 * len(rows) + 0.7) as canvas:
        axes = canvas.figure.add_subplot()
        _rows_axis(axes, names)
        _percent(axes, "% of verdicts that change (lower is better)")
        for place, (row, name) in enumerate(zip(rows, names, strict=True)):
            _dot(canvas, axes, _measured(row, "flipped"), place, name)
        return canvas.picture(
            "What a suffix changes",
            f"Dot: the share; bar: 95 % interval. {_n_of(rows)}. The content stays the same.",
            "; ".join(
                f"{n}: {said(_measured(r, 'flipped'))}" for n, r in zip(names, rows, strict=True)
            ),
        )


def _rows_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name, 44) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(length=0)


def _percent(axes: Axes, title: str) -> None:
    axes.set_xlim(-2, 102)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel(title)
    axes.grid(visible=True, axis="x", color=GRID.light)


def _dot(canvas: Canvas, axes: Axes, m: Measurement, place: int, name: str) -> None:
    if m.value is None:
        axes.text(0, place, "not defined", va="center", color=MUTED.light)
        return
    if m.low is not None and m.high is not None:
        axes.plot([100 * m.low, 100 * m.high], [place, place], color=INK.light, linewidth=1.4)
    axes.plot(
        [100 * m.value], [place], "o", color=INK.light, markersize=5,
        gid=canvas.tip(f"{name.replace('_', ' ')} {said(m)}"),
    )  # fmt: skip


def _n_of(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({int(row["n"]) for row in rows})
    return f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "") + " answers"
