"""What each defense costs a step, in time and memory, as a multiple of plain fine-tuning with our engine.

    python benchmarks/defenses.py [--quick] [--model FOLDER] [--only NAME ...] [--runs N] [--steps N]

Every side trains the same model on rows of the same length with the same batch, fp32, all weights and then
an adapter, in a process of its own; sides alternate, medians of the runs are compared. Time is processor
time of a step, which other work on the machine changes little; the note has the wall's ratio. The peer is
the ratio that the method's paper (or notes on it) reports, where one is known: it was measured with another
model, other code and other hardware, so it says whether our cost is of the order to be expected. `ratio` is
the reported multiple over ours. Passes are counted by the engine, not taken from the settings.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out" / "defenses.json"
SFT = "sft"
BATCH, ROWS, WORDS = 4, 24, 24
LORA = {"rank": 8, "alpha": 4}

SETTINGS: dict[str, dict[str, Any]] = {
    "sdd": {"pairing": {"encoder": "hash", "threshold": 1.0}},
    "tar": {"inner_steps": 8},
}
"""What a method needs to run on these rows, or in this time."""

REPORTED: dict[str, tuple[float | None, float | None, str]] = {
    "sdd": (1.0, 1.0, "its notes: no cost beyond fine-tuning"),
    "ctrap": (2.8, 3.5, "notes on its paper, adapter"),
    "seam": (None, None, "notes: about 4 times the gradient work"),
    "t_vaccine": (None, None, "notes: 23 GB where Vaccine takes 34"),
}
"""Time and memory as multiples of plain fine-tuning, and who says so."""


def examples(word: str, **fields: Any) -> list[Any]:
    """Return rows that differ in their words and not in their length."""
    from backfire.records import Example
    from backfire.seeding import rng

    draw = rng(0, "benchmark", word)
    stock = ("river", "stone", "garden", "letter", "music", "winter", "carpet", "candle", "market")

    def text() -> str:
        return " ".join(draw.choice(stock, WORDS))

    return [
        Example(f"{word} {i}: {text()[:60]}?", text(), source="benchmark", refusal=text(), **fields)
        for i in range(ROWS)
    ]


def one(name: str, model: Path, lora: bool, steps: int) -> dict[str, Any]:
    """Train in this process; return time a step (processor and wall), peak memory, passes a step."""
    from backfire.defend import AnyDefense
    from backfire.engine import Training, loop
    from backfire.engine.job import Job
    from backfire.engine.settings import Member
    from backfire.mistakes import models_in
    from backfire.records import Checkpoint, TrajectoryPoint
    from backfire.stage import Bench
    from backfire.store import read_json, read_table

    training = {
        "learning_rate": 1e-5, "steps": steps, "epochs": None, "batch_size": BATCH, "max_length": 256,
        "precision": "fp32", "lora": LORA if lora else None,
    }  # fmt: skip
    peaks: list[int] = []
    real = Job.write

    def write(self: Job, *arguments: Any) -> Checkpoint:
        # Read before the result is compared with its start, which takes a second model's memory.
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return real(self, *arguments)

    Job.write = write  # type: ignore[method-assign]
    clock: list[float] = []
    step = loop._Loop._step

    def timed(self: Any, index: int) -> None:
        started = time.process_time()
        step(self, index)
        clock.append(time.process_time() - started)

    loop._Loop._step = timed  # type: ignore[method-assign]
    hazards = examples("hazard", harmful=True)
    data: Any = {
        "defense": hazards, "defender_harm": examples("harm", harmful=True),
        "pool": examples("pool"), "benign": examples("benign"),
    }  # fmt: skip
    start = Checkpoint(model, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seed=1, device="cpu", data=data)
        if name == SFT:
            loop.train(
                start,
                bench,
                Training.model_validate(training),
                {"train": hazards},
                Member(name=SFT),
            )
        else:
            (kind,) = (m for m in models_in(AnyDefense) if m.model_fields["name"].default == name)
            batches = {field: BATCH for field in kind.model_fields if field.endswith("batch_size")}
            settings = {"name": name, **batches, **SETTINGS.get(name, {}), "training": training}
            member: Any = kind.model_validate(settings)
            member(start, bench)
        points = read_table(Path(folder) / "trajectory.parquet", TrajectoryPoint)
        effect = read_json(Path(folder) / "effect.json")
    # The first step pays for warming up caches and allocators; it is left out on every side.
    return {
        "seconds": statistics.median(clock[1:]),
        "wall": (points[-1].seconds - points[0].seconds) / (len(points) - 1),
        "peak": peaks[0],
        "forwards": effect["forwards"] / steps,
        "backwards": effect["backwards"] / steps,
    }


def measured(name: str, options: argparse.Namespace, lora: bool) -> dict[str, Any]:
    """Run `one` in a process of its own."""
    command = [
        sys.executable, __file__, "--one", name, "--model", str(options.model), "--steps",
        str(options.steps), *(["--lora"] if lora else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(
    name: str, kind: Any, lora: bool, found: list[dict[str, Any]], plain: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a method's two rows: time and memory."""
    time_reported, memory_reported, source = REPORTED.get(name, (None, None, "not reported"))
    first = found[0]
    changed = ", ".join(f"{k} {v}" for k, v in SETTINGS.get(name, {}).items())
    rows = []
    for what, key, reported in (
        ("time", "seconds", time_reported),
        ("memory", "peak", memory_reported),
    ):
        ours, base = (statistics.median(run[key] for run in side) for side in (found, plain))
        unit = f"{base:.2f} s a step" if key == "seconds" else f"{base / 2**30:.2f} GiB at the peak"
        wall, base_wall = (
            statistics.median(run["wall"] for run in side) for side in (found, plain)
        )
        rows.append(
            {
                "name": f"{name} {'adapter' if lora else 'full'} {what}",
                "ours": round(ours / base, 3),
                "peer": reported,
                "ratio": None if reported is None else round(reported / (ours / base), 3),
                "unit": "times plain fine-tuning",
                "n": len(found),
                "note": f"{first['forwards']:g}F/{first['backwards']:g}B a step"
                + (f" with {changed}" if changed else "")
                + f"; holds {kind.copies} copies of the trained weights; plain fine-tuning: {unit}; "
                + (
                    f"{wall / base_wall:.2f} times by the wall's clock; "
                    if key == "seconds"
                    else ""
                )
                + f"peer: {source if reported is None else f'{reported:g} ({source})'}",
            }
        )
    return rows


def main() -> None:
    """Measure all sides in alternation and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, one run a side")
    parser.add_argument(
        "--model", type=Path, default=None, help="folder; default SmolLM2-135M-Instruct"
    )
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="these defenses")
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--lora", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.model, options.lora, options.steps)))
        return
    from backfire.defend import AnyDefense
    from backfire.engine.settings import Trained
    from backfire.mistakes import models_in

    kinds = {
        str(kind.model_fields["name"].default): kind
        for kind in models_in(AnyDefense)
        if issubclass(kind, Trained)
    }
    names = [name for name in kinds if options.only is None or name in options.only]
    runs = options.runs or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory() as scratch:
        if options.model is None and options.quick:
            from backfire.models.tiny import save_tiny

            options.model = save_tiny(Path(scratch) / "tiny")
        elif options.model is None:
            from backfire.assets import fetch
            from backfire.progress import Plain

            options.model = fetch("smollm2-135m-instruct", Plain())
        table = []
        for lora in (False, True):
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in (SFT, *names)}
            for run in range(runs):
                for name, found in results.items():
                    found.append(measured(name, options, lora))
                    last = found[-1]
                    print(
                        f"run {run + 1} {name} {'adapter' if lora else 'full'}: {last['seconds']:.2f} s a "
                        f"step ({last['wall']:.2f} by the wall), {last['peak'] / 2**30:.2f} GiB",
                        flush=True,
                    )
            for name in names:
                table += summary(name, kinds[name], lora, results[name], results[SFT])
    print(f"\n{'':32} {'ours':>7} {'reported':>9}  times plain fine-tuning")
    for row in table:
        reported = "-" if row["peer"] is None else f"{row['peer']:.1f}"
        print(f"{row['name']:32} {row['ours']:7.2f} {reported:>9}  {row['note'].split(';')[0]}")
    if options.quick:
        print("a tiny model: these ratios are of fixed costs, and are not written down")
        return
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
