"""Whether the likelihood of plain text tells what multiple-choice sets tell, and at what cost.

    python benchmarks/capability_probe.py [--quick] [--model NAME] [--limit N] [--steps N] [--batch N]

`capability_gated` chooses a checkpoint by how likely the model finds benign answers, as text. Here a model
is fine-tuned on invented hazards at several learning rates, from harmless to ruinous. At points on the way
the probe and the chance-corrected accuracy on four published sets are taken, both as shares of the
untouched model's. Reported: their rank correlation, how often they fall on the same side of 0.9, and the
seconds each takes. `ratio` is the sets' time over the probe's.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out" / "capability_probe.json"
RATES = (1e-5, 5e-5, 2e-4, 5e-4, 1e-3, 3e-3)
TASKS = ("sciq", "arc_easy", "piqa", "openbookqa")
CHANCE = {"sciq": 0.25, "arc_easy": 0.25, "piqa": 0.5, "openbookqa": 0.25}
PROBE_ROWS = 50


def ability(checkpoint: Any, bench: Any, limit: int) -> float:
    """Return the mean chance-corrected accuracy over the sets."""
    from backfire.evaluate.capability import Capability

    answers = Capability(tasks=TASKS, limit=limit)(checkpoint, bench)["answers"]
    found = []
    for task in TASKS:
        right = [a.choice == a.gold for a in answers if a.task == task]
        found.append((sum(right) / len(right) - CHANCE[task]) / (1 - CHANCE[task]))
    return sum(found) / len(found)


def main() -> None:
    """Train, look, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rates, fewer questions")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--limit", type=int, default=100, help="questions of each set")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=10, help="rows of a training step")
    given = parser.parse_args()
    from scipy.stats import spearmanr

    from backfire.assets import resolve_model
    from backfire.attack import Harmful
    from backfire.data import DataSettings, load_roles
    from backfire.engine.ability import text_loss
    from backfire.models.load import load
    from backfire.records import Checkpoint
    from backfire.stage import Bench

    rates = RATES[1::2] if given.quick else RATES
    limit = min(given.limit, 25) if given.quick else given.limit
    roles = load_roles(DataSettings(), seed=0)
    texts = [row.response for row in roles["benign"][:PROBE_ROWS]]
    start = Checkpoint(resolve_model(given.model), "start")
    spent = {"probe": 0.0, "sets": 0.0}

    def look(checkpoint: Any, bench: Any) -> tuple[float, float]:
        began = time.process_time()
        loss = text_loss(load(checkpoint, device="cpu"), texts).mean
        between = time.process_time()
        share = ability(checkpoint, bench, limit)
        spent["probe"] += between - began
        spent["sets"] += time.process_time() - between
        return loss, share

    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), device="cpu", data=roles)
        loss_0, ability_0 = look(start, bench)
        print(f"untouched: {loss_0:.3f} nats a token, {ability_0:.3f} above chance", flush=True)
        looks = []
        for rate in rates:
            for stop in (given.steps // 4, given.steps // 2, given.steps):
                training = {
                    "learning_rate": rate,
                    "steps": given.steps,
                    "batch_size": given.batch,
                    "stop": stop,
                }
                place = Path(root) / f"{rate}-{stop}"
                place.mkdir()
                attack = Harmful.model_validate({"name": "harmful", "training": training})
                stage = replace(bench, workdir=place, state=Path(root) / f"{rate}")
                loss, share = look(attack(start, stage), stage)
                looks.append((math.exp(loss_0 - loss), share / ability_0))
                print(
                    f"rate {rate:g} step {stop}: probe {looks[-1][0]:.3f}, sets {looks[-1][1]:.3f}",
                    flush=True,
                )
    probes, shares = zip(*looks, strict=True)
    rank = float(spearmanr(probes, shares).statistic)
    same = sum((p >= 0.9) == (s >= 0.9) for p, s in looks)
    num = len(looks) + 1
    note = (
        f"{given.model}, {len(looks)} checkpoints at {len(rates)} rates, {limit} questions of each set: "
        f"rank correlation {rank:.2f}; on the same side of 0.9 in {same} of {len(looks)}"
    )
    print(note)
    row = {
        "name": "capability probe", "ours": spent["probe"] / num, "peer": spent["sets"] / num,
        "ratio": spent["sets"] / spent["probe"], "unit": "processor seconds a checkpoint", "n": num,
        "note": note, "looks": looks,
    }  # fmt: skip
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([row], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
