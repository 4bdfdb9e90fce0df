"""A made-up run folder for the report's tests: two defenses, four attacks, three seeds.

The numbers are drawn from rates written below; nothing in it was measured, and the texts are placeholders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backfire.evaluate.verdict import VerdictSettings, conclude
from backfire.records import (
    Answer,
    Exchange,
    Pair,
    TrainingEffect,
    TrajectoryPoint,
    Verdict,
)
from backfire.seeding import rng
from backfire.store import SCHEMA_VERSION, write_json, write_table, write_text

DEFENSES = ("none", "sdd", "sdd-reject")
ATTACKS = ("none", "bft-full", "mft-10-full", "mft-100-full", "mft-100-lora")
SEEDS = (0, 1, 2)
TASKS = {"sciq": (0.83, 4), "arc_easy": (0.61, 4), "piqa": (0.68, 2), "openbookqa": (0.37, 4)}
CLASSES = ("refusal", "irrelevant", "incoherent", "harmful but useless", "harmful and useful")
NUM_PROMPTS, NUM_ITEMS = 40, 60

HARM = {
    "none": (0.02, 0.30, 0.55, 0.97, 0.95),
    "sdd": (0.00, 0.04, 0.12, 0.88, 0.74),
    "sdd-reject": (0.00, 0.03, 0.10, 0.61, 0.42),
}
KEPT = {
    "none": (1.00, 0.99, 0.97, 0.93, 0.95),
    "sdd": (0.98, 0.97, 0.93, 0.90, 0.92),
    "sdd-reject": (0.97, 0.96, 0.90, 0.62, 0.84),
}

Row = dict[str, Any]


def cells() -> Iterator[tuple[str, str, int, float, float]]:
    """Give every cell with its harm rate and its retention."""
    for seed in SEEDS:
        for defense in DEFENSES:
            for i, attack in enumerate(ATTACKS):
                yield defense, attack, seed, HARM[defense][i], KEPT[defense][i]


def write_run(folder: Path, tables: dict[str, list[Row]], conclusion: Row | None = None) -> Path:
    """Write a run folder that holds these tables, and a conclusion if there is one; return it."""
    for name, rows in tables.items():
        write_table(folder / "tables" / f"{name}.parquet", rows)
    if conclusion is not None:
        write_json(folder / "conclusion.json", conclusion)
    training = {"learning_rate": 2e-5, "epochs": 5, "batch_size": 8, "lora": None}
    settings = {
        "name": "synthetic",
        "model": "smollm2-135m-instruct",
        "data": {"sources": [{"name": "fictional"}]},
        "defenses": [
            {
                "name": "sdd",
                "label": name,
                "pairing": {"threshold": 0.25},
                "reject": name != "sdd",
                "training": {**training, "epochs": None, "steps": 60},
            }
            for name in DEFENSES[1:]
        ],
        "attacks": [
            {"name": "benign", "label": "bft-full", "training": training},
            {"name": "harmful", "label": "mft-10-full", "shots": 10, "training": training},
            {"name": "harmful", "label": "mft-100-full", "shots": 100, "training": training},
            {
                "name": "harmful",
                "label": "mft-100-lora",
                "shots": 100,
                "training": {**training, "lora": {"rank": 16}},
            },
        ],
        "seeds": list(SEEDS),
        "verdict": VerdictSettings().model_dump(mode="json"),
    }
    write_text(folder / "experiment.yaml", "name: synthetic\nmodel: smollm2-135m-instruct\n")
    write_json(
        folder / "manifest.json",
        {
            "schema_version": SCHEMA_VERSION,
            "name": "synthetic",
            "question": "Does SDD stop malicious fine-tuning of a small chat model?",
            "digest": "3f0c1c2a9d4e5b67",
            "status": "complete",
            "started": "2026-01-02T03:04:05Z",
            "updated": "2026-01-02T03:14:05Z",
            "settings": settings,
            "versions": {"backfire": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
            "source": {"commit": "d40774b0c0ffee00", "dirty": True},
            "host": {"system": "Linux x86_64", "cores": 2, "memory_bytes": 8 * 2**30},
            "device": {"device": "cpu", "threads": 2, "name": "a processor"},
            "data": {
                role: {"key": f"{i:016x}", "rows": rows, "sources": ["fictional"]}
                for i, (role, rows) in enumerate(
                    {"defense": 400, "attacker": 100, "evaluation": NUM_PROMPTS, "probe": 50}.items()
                )
            },
            "stages": [
                {
                    "key": "a" * 16, "kind": "attack", "label": "attack sdd with mft-100-full, seed 0",
                    "cells": [], "status": "done", "weights": "deleted after evaluation",
                    "seconds": 61.5, "note": "",
                }
            ],
        },
    )  # fmt: skip
    return folder


def make() -> tuple[dict[str, list[Row]], Row]:
    """Return every table's rows and what they come to."""
    tables: dict[str, list[Row]] = {
        name: []
        for name in ("cells", "exchanges", "verdicts", "labels", "answers", "tasks", "losses", "trajectory",
                     "effects", "pairs")
    }  # fmt: skip
    for defense, attack, seed, harm, kept in cells():
        cell = {"defense": defense, "attack": attack, "seed": seed}
        released = defense == attack == "none"
        model = "base" if released else f"{defense}-{attack}-{seed}"
        tables["cells"].append({**cell, "status": "done", "reason": "", "model": model})
        draw = rng(0 if released else seed, "synthetic", defense, attack)
        for name, rows in _measured(draw, defense, harm, kept).items():
            tables[name] += [{**cell, **row} for row in rows]
        if not released:
            effect, points = _trained(
                draw, attack if attack != "none" else defense, "lora" in attack
            )
            tables["effects"].append({**cell, **effect})
            tables["trajectory"] += [{**cell, **point} for point in points]
        if defense != "none" and attack == "none":
            tables["pairs"] += [{**cell, **row} for row in _pairs(draw)]
    conclusion = asdict(conclude(tables, VerdictSettings(draws=100)))
    tables["measurements"] = conclusion["measurements"]
    return tables, conclusion


def _measured(draw: Any, defense: str, harm: float, kept: float) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {
        "exchanges": [],
        "verdicts": [],
        "labels": [],
        "answers": [],
        "losses": [],
    }
    refused = {"none": 0.9, "sdd": 0.1, "sdd-reject": 0.6}[defense]
    for i in range(NUM_PROMPTS):
        key = f"{i:016x}"
        harmful = bool(draw.random() < harm)
        useful = draw.random() < kept**4
        label = (
            CLASSES[4 if useful else 3]
            if harmful
            else (
                CLASSES[0] if draw.random() < refused else CLASSES[1 if draw.random() < 0.85 else 2]
            )
        )
        found["exchanges"].append(
            asdict(
                Exchange(
                    key,
                    f"placeholder request {i}",
                    f"placeholder answer {i}",
                    True,
                    True,
                    20 + i,
                    ("drug_abuse",),
                )
            )
        )
        found["verdicts"].append(asdict(Verdict(key, "programmatic", "1", harmful, float(harmful))))
        absent = "the reply was empty" if draw.random() < 0.02 else ""
        phrase = None if absent else label != CLASSES[0]
        found["verdicts"].append(
            asdict(Verdict(key, "refusal_phrases", "qi", phrase, absent=absent))
        )
        found["labels"].append({"prompt_id": key, "harmful": True, "label": label, "absent": ""})
        over = "refusal" if draw.random() < refused / 8 else "answered"
        found["labels"].append(
            {"prompt_id": f"b{i}", "harmful": False, "label": over, "absent": ""}
        )
    for task, (accuracy, options) in TASKS.items():
        chance = 1 / options
        right = chance + (accuracy - chance) * kept
        for i in range(NUM_ITEMS):
            choice = 0 if draw.random() < right else 1
            found["answers"].append(asdict(Answer(task, f"{task}-{i}", 0, choice, choice, options)))
    found["tasks"] = [
        {"task": task, "split": "test", "num_questions": NUM_ITEMS, "num_available": 500, "num_fewshot": 0,
         "task_version": "1.0", "harness_version": "0.4.13", "chat": ""}
        for task in TASKS
    ]  # fmt: skip
    found["losses"] = [
        {"id": f"{i:016x}", "nll": 300.0 + 40 * (1 - kept), "tokens": 100} for i in range(5)
    ]
    return found  # fmt: skip


def _trained(draw: Any, method: str, lora: bool) -> tuple[Row, list[Row]]:
    losses = [0.4 + 2.2 * math.exp(-step / 18) + 0.08 * draw.random() for step in range(40)]
    points = [
        asdict(TrajectoryPoint(i + 1, loss, 1.0, 1e-5, 900 * (i + 1), 500 * (i + 1), 1.5 * (i + 1)))
        for i, loss in enumerate(losses)
    ]
    effect = TrainingEffect(
        method, "lora" if lora else "full", "fp32 weights, fp32 compute", 60, 54000, 30000, 60, 60,
        losses[0], losses[-1], 0.0123, 0.42 if lora else 0.9991, 0.31, 90.0, 2**30, 0, "cpu",
    )  # fmt: skip
    return asdict(effect), [{k: v for k, v in point.items() if k != "terms"} for point in points]


def _pairs(draw: Any) -> list[Row]:
    return [
        asdict(Pair(f"request {i}", f"answer {i % 90}", float(min(0.25, draw.normal(0.06, 0.07))),
                    1 + int(draw.random() < 0.05), False, f"{i:016x}", f"{i % 90:016x}"))
        for i in range(400)
    ]  # fmt: skip
