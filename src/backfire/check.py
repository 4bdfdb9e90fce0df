"""What a run would do and cost, without fetching, loading or running anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backfire.config import Experiment, resolved_yaml
from backfire.evaluate.statistics import resolvable
from backfire.judges.rubric import rubric_judges
from backfire.pipeline import run_folder
from backfire.plan import make_plan
from backfire.pricing import (
    DEVICES,
    TOKENS_PER_ROW,
    UTILISATION,
    cost,
    disk_bytes,
    known_size,
)
from backfire.report.coverage import coverage
from backfire.store import content_key, read_json
from backfire.text import size as bytes_text
from backfire.text import table

__all__ = ["check_page", "check_record"]

_GUESSES = (10_000, 1_000_000)
"""Rows of a role that nobody counted yet. A training that both cost the same is priced."""


def check_record(experiment: Experiment, out: Path | None = None) -> dict[str, Any]:
    """Return the plan of an experiment, the price of its trainings, and its resolved settings."""
    folder = run_folder(experiment, out)
    before = _manifest(folder)
    plan = make_plan(experiment, "", {})
    counts, uncounted = _counts(experiment, before)
    size = known_size(experiment.model)
    # A training that stops at a point is a part of one that goes on.
    trainings = [s for s in plan.steps if s.course == s.key]
    # Parts of sequences may share a label and differ in their settings.
    alike = {s.key: (s.kind, content_key(s.member)) for s in trainings}
    runs = Counter(alike.values())
    members = {alike[s.key]: s.member for s in trainings}
    prices = []
    for (kind, key), member in members.items():
        row: dict[str, Any] = {"kind": kind, "label": member.label, "runs": runs[kind, key]}
        if size is not None:
            price, other = (
                cost(member, size, counts | dict.fromkeys(uncounted, n)) for n in _GUESSES
            )
            if price.steps != other.steps:
                prices.append(row)
                continue
            row |= {
                "steps": price.steps,
                "tokens": price.tokens,
                "flops": price.flops,
                "memory_bytes": price.memory_bytes,
                "hours": {name: price.hours(device) for name, device in DEVICES.items()},
            }
        prices.append(row)
    measured = {step.parent for step in plan.steps if step.kind == "evaluation"}
    calls = [
        {
            "judge": judge.name,
            "model": judge.endpoint.model,
            "host": judge.endpoint.host,
            **asdict(judge.bill(len(measured) * _asked(evaluation, counts), TOKENS_PER_ROW)),
        }
        for evaluation in experiment.evaluations
        for judge in rubric_judges([evaluation])
    ]
    done = sum(stage["status"] == "done" for stage in before.get("stages", ()))
    return {
        "name": experiment.name,
        "question": experiment.question,
        "digest": experiment.digest,
        "folder": str(folder),
        "stages": dict(Counter(step.kind for step in plan.steps)),
        "done": done if before.get("digest") == experiment.digest else 0,
        "cells": len(experiment.cells),
        "rows": counts,
        "uncounted": uncounted,
        "prices": prices,
        "judge_calls": calls,
        "resolution": _resolution(experiment, counts),
        "second_round": _second_round(experiment),
        "coverage": coverage(
            [
                *(attack.model_dump(mode="json") for attack in experiment.active_attacks),
                *([{"name": "search"}] if experiment.search is not None else []),
            ]
        ).sentences(),
        "disk_bytes": None
        if size is None
        else disk_bytes(plan.most_models(keep_all=experiment.keep_attacked), size),
        "settings": resolved_yaml(experiment),
    }


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return dict(read_json(path)) if path.is_file() else {}


def _counts(experiment: Experiment, manifest: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return rows by role, and the roles that get what is left, which only a run counts.

    They are as an earlier run of the same data counted them, else as asked for.
    """
    if manifest.get("settings", {}).get("data") == experiment.data.model_dump(mode="json"):
        return {role: int(about["rows"]) for role, about in manifest["data"].items()}, []
    asked = experiment.data.counts.model_dump()
    counts = {role: count for role, count in asked.items() if count}
    return counts, [role for role, count in asked.items() if count is None]


def _resolution(experiment: Experiment, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Return what differences the planned observations can show, for each thing with a known number."""
    seeds, confidence = len(experiment.seeds), experiment.verdict.confidence
    found = []
    for evaluation in experiment.evaluations:
        if evaluation.name == "harmfulness":
            kept_back = experiment.confirm.prompts if experiment.confirm else 0
            hazards = {**counts, "evaluation": max(0, counts.get("evaluation", 0) - kept_back)}
            found.append(("harm", "hazards", _asked(evaluation, hazards)))
        elif evaluation.name == "capability" and evaluation.limit is not None:
            limits = evaluation.limit
            named = limits if isinstance(limits, dict) else dict.fromkeys(evaluation.tasks, limits)
            found += [
                (f"accuracy on {task}", "questions", named[task])
                for task in evaluation.tasks
                if task in named and not task.startswith("mmlu")
            ]
    return [
        {
            "measure": measure,
            "unit": unit,
            "n": n,
            "seeds": seeds,
            "difference_if_seeds_agree": resolvable(n, confidence),
            "difference_if_seeds_are_independent": resolvable(n * seeds, confidence),
        }
        for measure, unit, n in found
        if n
    ]


def _second_round(experiment: Experiment) -> dict[str, int] | None:
    """Return the trainings that the second round adds at most; they are not in the prices."""
    if experiment.confirm is None or not experiment.active_attacks:
        return None
    seeds, defenses = len(experiment.confirm.seeds), len(experiment.active_defenses)
    controls = min(defenses, len(experiment.active_attacks))
    return {
        "seeds": seeds,
        "prompts": experiment.confirm.prompts,
        "trainings": seeds * (2 * defenses + controls),
    }


def _asked(evaluation: Any, counts: dict[str, int]) -> int:
    """Return the hazards an evaluation asks."""
    rows = counts.get("evaluation", 0)
    return rows if evaluation.num_prompts is None else min(rows, int(evaluation.num_prompts))


def check_page(record: dict[str, Any]) -> str:
    """Return the record as text; the resolved settings come last, ready to be saved."""
    stages = ", ".join(f"{count} {kind}" for kind, count in record["stages"].items())
    rows = [f"{n} {role}" for role, n in record["rows"].items()]
    rows += [f"all that is left for {role}" for role in record["uncounted"]]
    lines = [
        f"{record['name']}: {record['question']}",
        "",
        f"digest     {record['digest']}",
        f"folder     {record['folder']}",
        f"grid       {record['cells']} cells; stages: {stages}; {record['done']} done before",
        f"rows       {', '.join(rows)}",
        f"disk       about {bytes_text(record['disk_bytes'])} for weights at once",
        "",
    ]
    priced = [row for row in record["prices"] if "flops" in row]
    if record["prices"] and record["disk_bytes"] is None:
        lines.append("price      unknown: the model's size is not known before it is fetched")
    elif unpriced := [row["label"] for row in record["prices"] if "flops" not in row]:
        lines += [
            f"Not priced: {', '.join(unpriced)}. How many rows they read is counted when a run reads its "
            f"data; give numbers for {' and '.join(record['uncounted'])} under `data.counts` to know "
            "before.",
            "",
        ]
    if priced:
        lines += [
            table(
                ["training", "runs", "steps", "tokens", "FLOPs", "memory/device",
                 *(f"h on {name}" for name in DEVICES)],
                [
                    [row["label"], row["runs"], row["steps"], row["tokens"], f"{row['flops']:.1e}",
                     bytes_text(row["memory_bytes"]),
                     *(_hours(row, name) for name in DEVICES)]
                    for row in priced
                ],
            ),
            "",
            f"Estimates: {TOKENS_PER_ROW} tokens a row, {UTILISATION:.0%} of the device's peak; hours "
            "are for one run on one device and leave evaluations out; a star marks a training whose "
            "memory exceeds one such device (use several with FSDP, or an adapter).",
        ]  # fmt: skip
    if record["judge_calls"]:
        lines += ["", *_calls(record["judge_calls"])]
    if record["second_round"]:
        lines += [
            "",
            "Second round: up to {trainings} more trainings ({seeds} fresh seeds), not in the "
            "prices; it asks {prompts} hazards kept back until then.".format(
                **record["second_round"]
            ),
        ]
    if record["resolution"]:
        lines += ["", *_resolved(record["resolution"])]
    lines += ["", *record["coverage"]]
    return "\n".join([*lines, "", record["settings"].rstrip()])


def _resolved(rows: list[dict[str, Any]]) -> list[str]:
    seeds = rows[0]["seeds"]
    points = [
        [row["measure"], f"{row['n']} {row['unit']}",
         *(f"{100 * row[f'difference_if_seeds_{how}']:.0f} points" for how in ("are_independent", "agree"))]
        for row in rows
    ]  # fmt: skip
    if seeds == 1:
        points = [row[:3] for row in points]
    header = ["what", "of each model", "smallest difference shown", "if all seeds agree"]
    return [
        table(header[: 3 if seeds == 1 else 4], points),
        "",
        f"Smallest difference between two models that {seeds} seed{'' if seeds == 1 else 's'} will show 4 "
        "times in 5, for rates near one half and without the gain from pairing: a smaller one may be there "
        "and not be seen.",
    ]


def _calls(calls: list[dict[str, Any]]) -> list[str]:
    hosts = ", ".join(sorted({call["host"] for call in calls}))
    return [
        table(
            ["judge", "model", "calls", "tokens sent", "received, at most", "cost, at most"],
            [
                [call["judge"], call["model"], call["calls"], call["tokens_in"], call["tokens_out"],
                 "no price given" if call["cost"] is None else f"{call['cost']:.2f} {call['currency']}"]
                for call in calls
            ],
        ),
        "",
        f"Every hazardous request is sent to {hosts} with its answer. Estimates at {TOKENS_PER_ROW} tokens "
        "a row; equal answers are asked once, and what was answered before is not asked again.",
    ]  # fmt: skip


def _hours(row: dict[str, Any], name: str) -> str:
    fits = row["memory_bytes"] <= DEVICES[name].memory_bytes
    return f"{row['hours'][name]:.2g}{'' if fits else '*'}"
