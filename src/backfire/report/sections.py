"""The card's tables, each built from the run's rows."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from backfire.progress import duration
from backfire.report.figures.words import seeds_of
from backfire.report.grid import CONTROL, Grid
from backfire.report.metrics import (
    HARMFUL_RATE,
    HARMFULNESS,
    OVER_REFUSAL,
    PERPLEXITY,
    PHRASES,
    RETENTION,
    STRONGREJECT,
    STRONGREJECT_RUBRIC,
    USABLE,
    VERIFIED,
    accuracy_column,
    columns,
)
from backfire.report.run import Run
from backfire.report.seen import seen, unequal
from backfire.report.tables import Cell, Column, Table, counted

__all__ = [
    "data",
    "effects",
    "facts",
    "judges",
    "main",
    "measurements",
    "members",
    "pairing",
    "published",
    "stages",
    "tasks",
]

_DEFENSE = Column("defense", "defense", kind="text")
_ATTACK = Column("attack", "attack", kind="text")
_SEED = Column("seed", "seed")


def main(grid: Grid) -> Table:
    """Return defense x attack, pooled over seeds: the first thing a reader sees."""
    judged = (HARMFULNESS, HARMFUL_RATE, STRONGREJECT_RUBRIC, STRONGREJECT)
    metrics = [m for m in (VERIFIED, USABLE, PHRASES, *judged) if grid.measured(m)]
    taxonomy = [Column("answers", "answers to hazards", "share of each class", kind="text")]
    capability = [m for m in (RETENTION,) if grid.measured(m)]
    tail = [m for m in (PERPLEXITY, OVER_REFUSAL) if grid.measured(m)]
    shown: list[Column] = [
        *(columns(m) for m in metrics),
        *(taxonomy if grid.shares else ()),
        *(columns(m) for m in capability),
        *(accuracy_column(task, grid.chance.get(task)) for task in grid.tasks),
        *(columns(m) for m in tail),
    ]
    rows: list[Mapping[str, Cell]] = []
    for attack in grid.attacks:
        for defense in grid.defenses:
            if not grid.has(defense, attack):
                continue
            row: dict[str, Cell] = {
                "attack": "as released" if attack == CONTROL else attack,
                "defense": "undefended" if defense == CONTROL else defense,
            }
            for column in shown:
                row[column.key] = grid.get(column.key, defense, attack)
            row["answers"] = grid.shares.get((defense, attack))
            rows.append(row)
    unmeasured = [columns(m).title for m in (VERIFIED, USABLE, PHRASES, RETENTION, PERPLEXITY, OVER_REFUSAL)
                  if not grid.measured(m)]  # fmt: skip
    if not grid.tasks:
        unmeasured.append("accuracy by task")
    if not grid.shares:
        unmeasured.append("answer taxonomy")
    notes = (
        [f"Not measured in this run, so not shown: {', '.join(unmeasured)}."] if unmeasured else []
    )
    if unequal(grid):
        notes.append(unequal(grid))
    absent = [m for m in grid.measurements if m.seed is None and m.num_absent]
    if absent:
        worst = max(absent, key=lambda m: m.num_absent)
        notes.append(
            f"Absent observations are left out, never guessed: up to {worst.num_absent} of "
            f"{worst.n + worst.num_absent} ({worst.metric}, {worst.defense} / {worst.attack})."
        )
    return Table(
        "main",
        "Every defense under every attack",
        [_ATTACK, _DEFENSE, *shown],
        rows,
        f"Pooled over {seeds_of(grid)}; beside each value its 95 % interval.",
        notes,
        tall=True,
    )


def members(grid: Grid) -> Table:
    """Return what each label of the grid stands for, from the settings."""
    listed = [
        *(("align", m) for m in [grid.settings.get("align")] if m),
        *(("defense", m) for m in grid.settings.get("defenses") or ()),
        *(("attack", m) for m in grid.settings.get("attacks") or ()),
    ]
    rows: list[Mapping[str, Cell]] = []
    for kind, member in listed:
        training = member.get("training") or {}
        lora = training.get("lora")
        length = [counted(training[f"{k}s"], k) for k in ("epoch", "step") if training.get(f"{k}s")]
        rest = {k: v for k, v in member.items() if k not in ("label", "name", "training")}
        rows.append(
            {
                "label": member.get("label") or member.get("name"),
                "kind": "safety training" if kind == "align" else kind,
                "method": member.get("name"),
                "trains": f"LoRA, rank {lora.get('rank')}"
                if lora
                else "all weights"
                if training
                else "",
                "rate": f"{training['learning_rate']:g}" if "learning_rate" in training else "",
                "length": ", ".join(length),
                "batch": training.get("batch_size"),
                "sees": seen(grid, kind, str(member.get("label") or member.get("name"))),
                "rest": "; ".join(f"{k} {v}" for k, v in _dotted(rest) if v),
            }
        )
    return Table(
        "members",
        "What the labels stand for",
        [
            Column("label", "label", kind="text"),
            Column("kind", "kind", kind="text"),
            Column("method", "method", kind="text"),
            Column("trains", "trains", kind="text"),
            Column("rate", "learning rate", kind="text"),
            Column("length", "length", kind="text"),
            Column("batch", "batch", "rows"),
            Column("sees", "sees", "rows it trains on or draws from", kind="text"),
            Column("rest", "other settings", kind="prose"),
        ],
        rows,
    )


def measurements(grid: Grid, *, by_seed: bool = True) -> Table:
    """Return every measurement in long format; without the single seeds if they are not wanted."""
    rows: list[Mapping[str, Cell]] = [
        {
            "metric": m.metric,
            "attack": m.attack,
            "defense": m.defense,
            "seed": "all" if m.seed is None else m.seed,
            "value": m,
            "n": m.n,
            "absent": m.num_absent,
            "unit": m.unit,
            "direction": m.direction,
            "note": m.note,
        }
        for m in grid.measurements
        if by_seed or m.seed is None
    ]
    return Table(
        "measurements",
        "Every measurement",
        [
            Column("metric", "metric", kind="text"),
            _ATTACK,
            _DEFENSE,
            _SEED,
            Column("value", "value", "95 % interval", digits=3),
            Column("n", "n"),
            Column("absent", "absent"),
            Column("unit", "unit", kind="text"),
            Column("direction", "direction", kind="text"),
            Column("note", "note", kind="prose"),
        ],
        rows,
        tall=True,
    )


def effects(run: Run) -> Table:
    """Return what every training stage did to the weights."""
    rows: list[Mapping[str, Cell]] = [dict(row) for row in run.rows("effects")]
    return Table(
        "effects",
        "Did training move the weights?",
        [
            _ATTACK,
            _DEFENSE,
            _SEED,
            Column("parameters", "trained", kind="text"),
            Column("precision", "precision", kind="text"),
            Column("steps", "steps"),
            Column(
                "first_loss",
                "first",
                "mean of the first tenth of steps",
                "loss, nats/token",
                digits=3,
            ),
            Column("last_loss", "last", "of the last tenth", "loss, nats/token", digits=3),
            Column(
                "relative_distance", "distance", "‖after − before‖ / ‖before‖", "weights", digits=4
            ),
            Column("share_changed", "changed", "% of weights", "weights", scale=100, digits=1),
            Column(
                "share_lost_in_bf16",
                "lost in bf16",
                "% of changed weights",
                "weights",
                scale=100,
                digits=1,
            ),
            Column("forwards", "forward", "passes over a global batch", "cost"),
            Column("backwards", "backward", "passes", "cost"),
            Column("supervised_tokens", "tokens", "supervised", "cost"),
            Column("seconds", "time", "seconds", "cost"),
            Column("peak_memory_bytes", "peak memory", "MiB", "cost", scale=2.0**-20),
            Column("truncated", "cut rows"),
            Column("warning", "warning", kind="prose"),
        ],
        rows,
        tall=True,
    )


def pairing(run: Run) -> Table:
    """Return the pairs of each defense training: how many, how alike, how often drawn."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    prompts = ((run.manifest.get("data") or {}).get("defense") or {}).get("rows")
    for row in run.rows("pairs"):
        groups[row["defense"], row["seed"]].append(row)
    rows: list[Mapping[str, Cell]] = []
    for (defense, seed), pairs in groups.items():
        similarity = sorted(p["similarity"] for p in pairs)
        reuse = Counter(p["response_id"] for p in pairs)
        rows.append(
            {
                "defense": defense,
                "seed": seed,
                "pairs": len(pairs),
                "dropped": None if prompts is None else prompts - len(pairs),
                "mean": sum(similarity) / len(similarity),
                "highest": similarity[-1],
                "first": sum(p["tries"] == 1 for p in pairs) / len(pairs),
                "draws": sum(p["tries"] for p in pairs) / len(pairs),
                "fallback": sum(bool(p["fallback"]) for p in pairs),
                "responses": len(reuse),
                "reuse": max(reuse.values()),
            }
        )
    return Table(
        "pairing",
        "Pairs of prompt and irrelevant answer",
        [
            _DEFENSE,
            _SEED,
            Column("pairs", "pairs"),
            Column("dropped", "dropped", "prompts without an answer under the threshold"),
            Column("mean", "mean", "cosine", "similarity", digits=3),
            Column("highest", "highest", "cosine", "similarity", digits=3),
            Column("first", "accepted at once", "% of pairs", scale=100, digits=1),
            Column("draws", "draws", "mean a pair", digits=2),
            Column("fallback", "over threshold", "kept all the same"),
            Column("responses", "answers used", "distinct"),
            Column("reuse", "most reused", "times"),
        ],
        rows,
    )


def judges(grid: Grid) -> Table:
    """Return each judge's judgements: given, absent and why."""
    given: Counter[tuple[str, str]] = Counter()
    absent: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in grid.rows("verdicts"):
        key = (row["judge"], row["judge_version"])
        if row["absent"]:
            absent[key][row["absent"]] += 1
        else:
            given[key] += 1
    rows: list[Mapping[str, Cell]] = []
    for key in sorted(given.keys() | absent.keys()):
        reasons = absent[key]
        rows.append(
            {
                "judge": key[0],
                "version": key[1],
                "given": given[key],
                "absent": reasons.total(),
                "why": "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3)),
            }
        )
    return Table(
        "judges",
        "Judges",
        [
            Column("judge", "judge", kind="text"),
            Column("version", "version", kind="code"),
            Column("given", "judgements"),
            Column("absent", "absent", "counted, never guessed"),
            Column("why", "why absent", kind="prose"),
        ],
        rows,
    )


def tasks(run: Run) -> Table:
    """Return what was asked: versions, splits, shots; equal in every cell, so each is named once."""
    keys = ("task", "split", "num_questions", "num_available", "num_fewshot", "task_version",
            "harness_version", "chat")  # fmt: skip
    rows = {
        tuple(str(row.get(key)) for key in keys): {key: row.get(key) for key in keys}
        for row in run.rows("tasks")
    }
    return Table(
        "tasks",
        "Multiple-choice sets",
        [
            Column("task", "set", kind="text"),
            Column("split", "split", kind="text"),
            Column("num_questions", "questions", "asked"),
            Column("num_available", "of", "in the split"),
            Column("num_fewshot", "shots"),
            Column("task_version", "task version", kind="text"),
            Column("harness_version", "harness version", kind="text"),
            Column("chat", "chat format", "empty: plain text", kind="code"),
        ],
        list(rows.values()),
    )


def data(run: Run) -> Table:
    """Return the rows of the run by role."""
    roles = run.manifest.get("data") or {}
    rows: list[Mapping[str, Cell]] = [
        {
            "role": role,
            "rows": about.get("rows"),
            "sources": ", ".join(map(str, about.get("sources") or ())),
            "key": str(about.get("key", "")),
        }
        for role, about in roles.items()
    ]
    return Table(
        "data",
        "Data",
        [
            Column("role", "role", kind="text"),
            Column("rows", "rows"),
            Column("sources", "sources", kind="text"),
            Column("key", "content key", kind="code"),
        ],
        rows,
        "No two roles share a prompt (compared letter by letter, case and punctuation aside) or an entity; "
        "the content key changes when any row does.",
    )


def stages(run: Run) -> Table:
    """Return every step of the run: state, time and what became of its weights."""
    rows: list[Mapping[str, Cell]] = [
        {key: stage.get(key) for key in ("label", "status", "seconds", "weights", "key", "note")}
        for stage in run.manifest.get("stages") or ()
    ]
    seconds = [s for row in rows if isinstance(s := row["seconds"], int | float)]
    return Table(
        "stages",
        "Stages",
        [
            Column("label", "stage", kind="text"),
            Column("status", "status", kind="text"),
            Column("seconds", "time", "seconds", digits=1),
            Column("weights", "weights", kind="text"),
            Column("key", "key", kind="code"),
            Column("note", "note", kind="prose"),
        ],
        rows,
        f"{len(rows)} stages, {duration(sum(seconds))} of work in all",
    )


def facts(name: str, title: str, tree: Mapping[str, Any]) -> Table:
    """Return a tree of facts as a table of dotted names and values."""
    rows: list[Mapping[str, Cell]] = [{"name": k, "value": v} for k, v in _dotted(tree)]
    return Table(
        name,
        title,
        [Column("name", "name", kind="text"), Column("value", "value", kind="code")],
        rows,
    )


def _dotted(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, Mapping):
        return [
            pair
            for k, v in tree.items()
            for pair in _dotted(v, f"{prefix}.{k}" if prefix else str(k))
        ]
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        if all(not isinstance(item, Mapping | list) for item in tree):
            return [(prefix, ", ".join(map(str, tree)))]
        return [pair for i, v in enumerate(tree) for pair in _dotted(v, f"{prefix}.{i}")]
    return [(prefix, "" if tree is None else str(tree))]


def published() -> Table:
    """Return the numbers others have published, as shipped with the package; none of them is ours."""
    text = resources.files("backfire.report").joinpath("published.csv").read_text(encoding="utf-8")
    found = list(csv.DictReader(io.StringIO(text)))
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    notes: dict[str, dict[str, None]] = defaultdict(dict)
    places = ("source", "model", "defense", "attack")
    for line in found:
        place = tuple(line[name] for name in places)
        row = rows.setdefault(place, {name: line[name] for name in places})
        row[line["metric"]] = float(line["value"])
        judge = f"judge {line['judge']}, " if line["judge"] else ""
        notes[line["source"]][
            f"{line['metric']}: {judge}harness {line['harness']}, template {line['template']}"
        ] = None
        notes[line["source"]] |= dict.fromkeys(line["note"].split("; "))
    units = {line["metric"]: line["unit"] for line in found}
    return Table(
        "published",
        "Published numbers, not ours",
        [
            *(Column(name, name, kind="text") for name in places),
            *(Column(metric, metric, unit, digits=2) for metric, unit in units.items()),
        ],
        list(rows.values()),
        "Values claimed elsewhere, for orientation: another model, other attacks, prompts, judges and "
        "templates. Nothing in this table was measured by this run, and none of it may be compared row by "
        "row with the tables above.",
        [f"{source}. {'; '.join(lines)}." for source, lines in notes.items()],
    )
