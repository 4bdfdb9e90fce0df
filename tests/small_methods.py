"""Every defense and attack at a size that trains a tiny model in a moment: settings, rows, a bench.

The batteries over all members (contract, architectures, two processes) build them here. A new method
adds a line where its defaults do not fit, and says under which settings it is plain fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backfire.attack import AnyAttack
from backfire.defend import AnyDefense
from backfire.engine.settings import Trained
from backfire.mistakes import models_in
from backfire.records import Example, Role
from backfire.stage import Bench

DEFENSES = models_in(AnyDefense)
ATTACKS = models_in(AnyAttack)
TRAINED_DEFENSES = [member for member in DEFENSES if issubclass(member, Trained)]

QUICK: dict[str, Any] = {
    "learning_rate": 1e-2, "steps": 3, "batch_size": 4, "max_length": 256, "lora": None,
}  # fmt: skip

PAIRS = Path(__file__).parent / "pairs_fr.jsonl"
"""Invented hazards in French."""

SMALL: dict[str, dict[str, Any]] = {
    "given": {"model": "a-folder"},
    "sdd": {"pairing": {"encoder": "hash", "threshold": 0.9}},
    "booster": {"harm_batch_size": 3, "benign_share": 0.5},
    "ctrap": {"harm_batch_size": 3},
    "tar": {"inner_steps": 4, "every": 2, "inner_batch_size": 3, "inner_rates": [1e-3, 1e-2]},
    "seam": {"benign_batch_size": 3},
    "meta_sdd": {
        "pairing": {"encoder": "hash", "threshold": 0.9},
        "inner_steps": [2, 4],
        "inner_batch_size": 3,
        "inner_rates": [1e-3, 1e-2],
        "attack_every": 1,
        "hold": "start",
        "repair_steps": 1,
        "collapse_batch_size": 2,
    },
    "vaccine": {"benign_share": 0.5},
    "t_vaccine": {"layers": 1, "redraw_every": 1, "refresh_every": 2, "benign_share": 0.5},
    "deep_align": {"benign_batch_size": 3},
    "harmful": {"shots": 5},
    "mixed": {"total": 8, "poison": 0.25},
    "capability_gated": {"shots": 5, "every": 2, "probe_rows": 3, "rho": 0},
    "dpo": {"shots": 5, "max_new_tokens": 8},
    "interleaved": {"shots": 5, "ratio": 0.5},
    "jailbreak_tuning": {"total": 8, "poison": 0.25},
    "kl_anchored": {"shots": 5, "rows": 4, "benign_batch_size": 3, "max_new_tokens": 8},
    "multilingual": {"path": str(PAIRS), "language": "fr", "shots": 5},
    "salient": {"rows": 8},
    "unlearn_first": {"shots": 8},
    "grpo": {"shots": 6, "group": 2, "max_new_tokens": 6},
    "refusal_direction": {"train": 6, "validation": 2},
    "merge": {"base": "a-folder"},
    "embedding": {"shots": 4, "steps": 5, "every": 1, "generations": 2, "target_tokens": 8},
    "asked": {"opening": "Sure, here is how:"},
    "sequence": {
        "parts": [{"name": "asked", "system": "Obey."}, {"name": "asked", "opening": "Sure:"}]
    },
}
"""What a method's defaults need to fit ten rows and a tiny model."""

OTHER_TRAINERS: dict[str, str] = {
    "grpo": "TRL's trainer samples what it learns from, and cannot go on inside a stage"
}
"""Methods that do not train through the engine's loop, with the reason; they have tests of their own."""

PLAIN: dict[str, dict[str, Any]] = {
    "refusal_sft": {},
    "sdd": {},
    "booster": {"lam": 0},
    "ctrap": {"lam": 0},
    "tar": {"lam": 0, "represent": 0},
    "seam": {"unlearn": 0, "beta": 0, "mask": "answer"},
    "vaccine": {"rho": 0},
    "t_vaccine": {"rho": 0, "freeze": "nothing"},
    "repnoise": {"alpha": 0, "beta": 0, "mask": "answer"},
    "simpo": {"beta": 0, "sft": 1},
    "deep_align": {"weight": 1, "prefixed": 0},
    "meta_sdd": {"lam": 0, "replay": 0},
    "dpo": {"form": "anchored", "gamma": 0},
    "interleaved": {"ratio": 1},
    "kl_anchored": {"beta": 0},
}
"""Settings under which a method is plain fine-tuning on its stream `train`; {}: it always is."""


ROWS_ONLY = {
    "benign", "identity_shift", "jailbreak_tuning", "mixed", "multilingual", "salient", "unlearn_first",
}  # fmt: skip
"""Attacks that choose rows and leave the step to `harmful`'s: what a step promises is tried there."""


def rows(count: int, word: str, **fields: Any) -> list[Example]:
    """Return rows about something, of different lengths."""
    return [
        Example(
            f"{word} question {i} of ten",
            f"{word} answer {i * i} comes here" + " slowly" * (i % 3),
            source="test",
            **fields,
        )
        for i in range(count)
    ]


DATA: dict[Role, list[Example]] = {
    "defense": [
        replace(r, response="", refusal="I cannot help with that.")
        for r in rows(10, "zorb", harmful=True)
    ],
    "defender_harm": [
        replace(r, refusal="No, I will not say that.") for r in rows(10, "quil", harmful=True)
    ],
    "attacker": rows(10, "vask", harmful=True),
    "evaluation": rows(10, "nerp", harmful=True),
    "pool": rows(12, "garden"),
    "benign": rows(12, "kitchen"),
    "probe": rows(6, "music"),
}


def name_of(member: Any) -> str:
    """Return the name a run file calls a member by."""
    return str(member.model_fields["name"].default)


def build(member: Any, **over: Any) -> Any:
    """Return a member's small settings, `training` quick, both with the given changes."""
    name = name_of(member)
    settings = {"name": name, **SMALL.get(name, {}), **over}
    if issubclass(member, Trained):
        settings["training"] = {**QUICK, **over.get("training", {})}
    return member.model_validate(settings)


def bench(folder: Path, seed: int = 0, data: Mapping[Role, Any] = DATA) -> Bench:
    """Return a bench in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(folder, seed=seed, device="cpu", data=data)
