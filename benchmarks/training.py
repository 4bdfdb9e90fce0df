"""Tokens per second and peak memory of our loop and of TRL's SFTTrainer on the same rows.

    python benchmarks/training.py [--quick] [--model FOLDER]

Both sides train all parameters of the same model on the same 96 rows, batch 8, one epoch, fp32, AdamW,
the same order of rows. The peer runs twice: with its defaults (gradient checkpointing on) and with its
best stock setting (no checkpointing, rows grouped by length). Each run is a process of its own, in
alternation, so that memory is its own peak; medians of the runs are compared. The loss trajectories
are compared too: a faster loop that trains something else is not faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"
SIDES = ("ours", "trl-defaults", "trl-best")


def rows(count: int) -> list[Any]:
    """Return benign rows of natural length: shipped answers, every second one two of them joined."""
    from backfire.data import Pool
    from backfire.progress import Silent
    from backfire.records import Example

    pool = Pool()(Silent())
    made = []
    for i in range(count):
        parts = [pool[(i * (1 + k) + 31 * k) % len(pool)].response for k in range(1 + i % 2)]
        made.append(Example(pool[i % len(pool)].prompt, " ".join(parts), source="benchmark"))
    return made


def one(side: str, model: Path, count: int, shuffle: bool) -> dict[str, Any]:
    """Train once in this process; return seconds, tokens, peak memory and losses."""
    from backfire.engine import Member, Training
    from backfire.engine.loop import train
    from backfire.engine.trl import train_with_trl
    from backfire.records import Checkpoint, TrajectoryPoint
    from backfire.stage import Bench
    from backfire.store import read_table

    class Method(Member):
        name: str = "benchmark"

    training = Training(
        learning_rate=2e-5, epochs=1, batch_size=8, precision="fp32", shuffle=shuffle,
        gradient_checkpointing=side == "trl-defaults",
    )  # fmt: skip
    data = rows(count)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seed=1, device="cpu")
        start = Checkpoint(model, "benchmark")
        if side == "ours":
            train(start, bench, training, {"train": data}, Method())
        else:
            over = (
                {"train_sampling_strategy": "group_by_length"}
                if side == "trl-best" and shuffle
                else {}
            )
            train_with_trl(start, bench, training, data, Method(), config=over)
        points = read_table(Path(folder) / "trajectory.parquet", TrajectoryPoint)
    # The first step pays for warming up caches and allocators; it is left out on every side.
    return {
        "tokens": points[-1].tokens - points[0].tokens,
        "seconds": points[-1].seconds - points[0].seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [p.loss for p in points],
    }


def measured(side: str, model: Path, count: int, shuffle: bool) -> dict[str, Any]:
    """Run `one` in a process of its own."""
    command = [sys.executable, __file__, "--one", side, "--model", str(model), "--rows", str(count)]
    done = subprocess.run(
        [*command, *(["--shuffle"] if shuffle else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure all sides in alternation and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 rows, one run a side")
    parser.add_argument(
        "--model", type=Path, default=None, help="folder; default SmolLM2-135M-Instruct"
    )
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--runs", type=int, default=None)
    parser.add_argument("--shuffle", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is None:
        from backfire.assets import fetch
        from backfire.progress import Plain

        options.model = fetch("smollm2-135m-instruct", Plain())
    count = options.rows or (32 if options.quick else 96)
    if options.one:
        print(json.dumps(one(options.one, options.model, count, options.shuffle)))
        return
    runs = options.runs or (1 if options.quick else 3)
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for index in range(runs):
        for side in SIDES:
            found = measured(side, options.model, count, shuffle=True)
            results[side].append(found)
            rate = found["tokens"] / found["seconds"]
            print(
                f"run {index + 1} {side}: {rate:.1f} tokens/s, {found['peak'] / 2**30:.2f} GiB",
                flush=True,
            )
    ordered = {
        side: measured(side, options.model, min(count, 32), shuffle=False)["losses"]
        for side in SIDES[:2]
    }
    difference = max(abs(a - b) for a, b in zip(*ordered.values(), strict=True))
    print(f"largest loss difference to TRL on the same order of rows: {difference:.2e}")

    def median(side: str, what: str) -> float:
        values = [
            r["tokens"] / r["seconds"] if what == "rate" else r["peak"] / 2**30
            for r in results[side]
        ]
        return statistics.median(values)

    peer = f"TRL {version('trl')} SFTTrainer"
    table = []
    for side, words in (
        ("trl-defaults", "its defaults"),
        ("trl-best", "no checkpointing, grouped by length"),
    ):
        for what, unit in (("rate", "tokens/s"), ("memory", "GiB")):
            ours, theirs = median("ours", what), median(side, what)
            ratio = ours / theirs if what == "rate" else theirs / ours
            table.append(
                {
                    "name": f"training {what} vs {side}", "ours": round(ours, 3), "peer": round(theirs, 3),
                    "ratio": round(ratio, 3), "unit": unit, "n": runs,
                    "note": f"{peer}, {words}; {count} rows, batch 8, fp32; loss within {difference:.1e}",
                }
            )  # fmt: skip
    for row in table:
        figures = f"ours {row['ours']:9} peer {row['peer']:9} {row['unit']:9} ratio {row['ratio']}"
        print(f"{row['name']:36} {figures}")
    OUT.mkdir(exist_ok=True)
    (OUT / "training.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
