"""What searches over an attacker's settings came to: one line a search, one line a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backfire.report.run import Run
from backfire.report.tables import Cell, Column, Table

__all__ = ["searched", "trials"]


def searched(run: Run) -> Table:
    """Return each search with what it found, first as found and then on fresh seeds and prompts."""
    rows: list[Mapping[str, Cell]] = []
    for one in _searches(run):
        tried = [trial.get("status") for trial in one["trials"]]
        found: Mapping[str, Any] = next(
            (t for t in one["trials"] if t["number"] == one["best"]), {}
        )
        again = one["again"] or {}
        rows.append(
            {
                "model": _named(one),
                "strategy": one["strategy"],
                "spent": f"{one['spent']:.2g} of {one['budget']:.2g}",
                "trials": f"{tried.count('measured')} in full, {tried.count('stopped')} stopped, "
                f"{tried.count('diverged')} diverged, {tried.count('failed')} failed",
                "best": found.get("usable", 0.0),
                "again": _value(again, "usable"),
                "low": _value(again, "usable", "low"),
                "high": _value(again, "usable", "high"),
                "proxy": (one["proxy"] or {}).get("sentence", "No proxy."),
            }
        )
    return Table(
        "searches",
        "What attackers who tune their settings find",
        [
            Column("model", "model", kind="text"),
            Column("strategy", "strategy", kind="text"),
            Column("spent", "FLOPs", "of the trainings, spent of the budget", kind="text"),
            Column("trials", "trials", kind="text"),
            Column("best", "usable harm as found", "%, 0–100", scale=100, span=(0, 1)),
            Column("again", "scored again", "%, fresh seeds\nand prompts", scale=100, span=(0, 1)),
            Column("low", "from", "95 % interval", scale=100),
            Column("high", "to", "95 % interval", scale=100),
            Column("proxy", "proxy", "validated against the full measure", kind="prose"),
        ],
        rows,
        "Each search had the same budget on every model. What was found is the best of many noisy trials "
        "and looks better than it is; the second number is from seeds and prompts that chose nothing.",
        _compared(run),
    )


def trials(run: Run) -> Table:
    """Return every trial of every search."""
    rows: list[Mapping[str, Cell]] = [
        {
            "model": _named(one),
            "strategy": one["strategy"],
            "number": trial["number"],
            "values": ", ".join(f"{path} {value}" for path, value in trial["values"].items()),
            "status": "repeats " + str(trial["repeats"])
            if trial["repeats"] is not None
            else str(trial.get("status", "under way")),
            "flops": f"{trial.get('flops', 0.0):.2g}",
            "seconds": trial.get("seconds"),
            **{name: trial.get(name) for name in ("proxy", "harm", "retention", "usable")},
            "note": "; ".join(
                word
                for word, so in (
                    ("from a former search", trial["warm"]),
                    ("measured against the proxy's advice", trial.get("audited")),
                    ("best", trial["number"] == one["best"]),
                    ("on the front of harm and retention", trial["number"] in one["front"]),
                    (str(trial.get("reason")), trial.get("reason")),
                )
                if so
            ),
        }
        for one in _searches(run)
        for trial in one["trials"]
    ]
    percent = {"scale": 100.0, "span": (0.0, 1.0)}
    return Table(
        "trials",
        "Every trial of the searches",
        [
            Column("model", "model", kind="text"),
            Column("strategy", "strategy", kind="text"),
            Column("number", "trial"),
            Column("values", "settings", kind="text"),
            Column("status", "came to", kind="text"),
            Column("flops", "FLOPs", kind="text"),
            Column("seconds", "seconds", "training and measuring"),
            Column("proxy", "proxy", "% verified harm on the way", **percent),  # type: ignore[arg-type]
            Column("harm", "verified harm", "%", **percent),  # type: ignore[arg-type]
            Column("retention", "retention", "%", scale=100, span=(0, 1.2)),
            Column("usable", "usable harm", "%", **percent),  # type: ignore[arg-type]
            Column("note", "note", kind="prose"),
        ],
        rows,
        tall=True,
    )


def _searches(run: Run) -> Sequence[Mapping[str, Any]]:
    return list(run.search.get("searches") or ())


def _named(one: Mapping[str, Any]) -> str:
    return "undefended" if one["model"] == "none" else str(one["model"])


def _value(score: Mapping[str, Any], name: str, part: str = "value") -> float | None:
    found = (score.get(name) or {}).get(part)
    return None if found is None else float(found)


def _compared(run: Run) -> list[str]:
    """Return which strategy found more usable harm on each model, where several had the budget."""
    models: dict[str, dict[str, float]] = {}
    for one in _searches(run):
        value = _value(one["again"] or {}, "usable")
        none = 0.0 if one["best"] is None else None
        if (shown := none if value is None else value) is not None:
            models.setdefault(_named(one), {})[str(one["strategy"])] = shown
    notes = []
    for model, found in models.items():
        if len(found) > 1:
            ranked = sorted(found, key=lambda name: -found[name])
            listed = ", ".join(f"{name} {found[name]:.0%}" for name in ranked)
            notes.append(
                f"On {model}, usable harm scored again, by strategy: {listed}. One search each: the "
                "difference holds no doubt of the sampler's own luck."
            )
    return notes
