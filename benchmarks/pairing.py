"""Seconds to find irrelevant answers for 8,000 prompts in a pool of 50,000, first and second time.

    python benchmarks/pairing.py [--quick] [--model FOLDER]

The peer embeds the whole pool with `SentenceTransformer.encode` as it comes (32 texts a batch), then goes
prompt by prompt: one call to embed it, one draw at a time until an answer is dissimilar enough. Both
sides use the same encoder, threshold, limits, prompts and answers. Each run is a process of its own, in
alternation; importing the libraries is not counted, loading the model is. Ours runs twice a turn: cold
with an empty cache, then warm. The peer keeps nothing, so its one time stands against both.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out" / "pairing.json"
FULL, QUICK = (8000, 50_000), (160, 1000)
ASKING = (
    "in one paragraph", "for a ten-year-old", "for a school newspaper", "in plain words", "step by step",
    "for my grandfather", "with one example", "as briefly as you can", "for a visitor from abroad",
    "to someone in a hurry", "for a quiz night", "as you would tell a friend", "for a radio program",
    "without technical terms", "for a beginner", "with the main reason first", "for a poster",
    "as a short list", "for a curious neighbor", "in a friendly tone", "for a museum label",
    "in three sentences", "for a young student", "with a comparison", "for a club's newsletter",
    "as if on the phone", "for an evening class",
)  # fmt: skip


def texts(num_prompts: int, num_answers: int) -> tuple[list[Any], list[Any]]:
    """Return prompts and distinct answers made of the shipped pool's sentences.

    An answer has 55 words on average and one in ten has more than 99; Alpaca's 45 and 100, LIMA's more.
    """
    from backfire.records import Example
    from backfire.seeding import rng

    pool = (
        resources.files("backfire.data").joinpath("pool/benign.jsonl").read_text(encoding="utf-8")
    )
    rows = [json.loads(line) for line in pool.splitlines()]
    sentences = [s for row in rows for s in re.split(r"(?<=[.!?])\s+", row["response"])]
    random = rng(0, "benchmark")
    answers: dict[str, None] = {}
    while len(answers) < num_answers:
        words = min(400.0, random.lognormal(3.2, 1.0))
        answer = ""
        while len(answer.split()) < words or answer in answers:
            answer = f"{answer} {sentences[random.integers(len(sentences))]}".strip()
        answers[answer] = None
    prompts = [f"{row['prompt']} Please explain it {how}." for row in rows for how in ASKING]
    chosen = random.choice(len(prompts), num_prompts, replace=False)
    return (
        [Example(prompts[i], harmful=True) for i in chosen],
        [Example(f"question {i}", answer) for i, answer in enumerate(answers)],
    )


def ours(model: Path, prompts: list[Any], answers: list[Any], cache: Path) -> dict[str, Any]:
    """Pair with the package; return what was counted."""
    from backfire.data.pairing import Pairing, pair
    from backfire.models.embed import SentenceEncoder

    result = pair(prompts, answers, SentenceEncoder(model, cache), Pairing(), 0)
    return {
        "embedded": result.num_embedded,
        "pairs": len(result.pairs),
        "tries": result.num_tries,
    }


def peer(model: Path, prompts: list[Any], answers: list[Any]) -> dict[str, Any]:
    """Pair by embedding everything and redrawing one at a time."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from backfire.data.pairing import Pairing

    encoder = SentenceTransformer(str(model), local_files_only=True)
    texts = [row.response for row in answers]
    pool = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    settings, random = Pairing(), np.random.default_rng(0)
    pairs = tries = 0
    for prompt in prompts:
        vector = encoder.encode(
            [prompt.prompt], normalize_embeddings=True, show_progress_bar=False
        )[0]
        for _ in range(settings.max_draws):
            tries += 1
            if float(vector @ pool[random.integers(len(pool))]) <= settings.threshold:
                pairs += 1
                break
    return {"embedded": len(pool), "pairs": pairs, "tries": tries}


def measured(side: str, model: Path, size: tuple[int, int], cache: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        side,
        "--model",
        str(model),
        "--cache",
        str(cache),
    ]
    done = subprocess.run(
        [*command, "--size", *map(str, size)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one(side: str, model: Path, size: tuple[int, int], cache: Path) -> dict[str, Any]:
    """Time one side in this process, imports and the making of texts left out."""
    if side != "warm":
        import sentence_transformers  # noqa: F401
    prompts, answers = texts(*size)
    started, worked = time.perf_counter(), time.process_time()
    counts = (
        peer(model, prompts, answers) if side == "peer" else ours(model, prompts, answers, cache)
    )
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return {"seconds": seconds, "cpu": cpu, **counts}


def main() -> None:
    """Measure in alternation, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK[0]} prompts, {QUICK[1]} answers"
    )
    parser.add_argument("--model", type=Path, help="folder; default all-MiniLM-L6-v2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", choices=("cold", "warm", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.model, tuple(options.size), options.cache)))
        return
    if options.model is None:
        from backfire.assets import fetch
        from backfire.progress import Plain

        options.model = fetch("all-minilm-l6-v2", Plain())
    size = QUICK if options.quick else FULL
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": [], "peer": []}
    for turn in range(options.runs):
        with tempfile.TemporaryDirectory() as cache:
            for side in runs if turn % 2 == 0 else ("peer", "cold", "warm"):
                found = measured(side, options.model, size, Path(cache))
                runs[side].append(found)
                print(f"turn {turn + 1}: {side:5} {found['seconds']:9.2f} s", file=sys.stderr)
    rows = [row(side, runs, size) for side in ("cold", "warm")]
    print(f"{'':44}{'ours':>10}{'peer':>10}{'ratio':>9}")
    for item in rows:
        print(f"{item['name']:44}{item['ours']:8.2f} s{item['peer']:8.2f} s{item['ratio']:8.1f}x")
    print(rows[0]["note"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def row(side: str, runs: dict[str, list[dict[str, Any]]], size: tuple[int, int]) -> dict[str, Any]:
    """Return one line of the table: medians over the runs."""
    mine, theirs = (
        statistics.median(run["seconds"] for run in runs[key]) for key in (side, "peer")
    )
    counted, other = runs[side][0], runs["peer"][0]
    return {
        "name": f"pairing {size[0]:,} prompts, {size[1]:,} answers, {side}",
        "ours": round(mine, 3),
        "peer": round(theirs, 3),
        "ratio": round(theirs / mine, 2),
        "unit": "s",
        "n": len(runs[side]),
        "note": (
            "peer: whole pool embedded, one-at-a-time redraws, sentence-transformers "
            f"{version('sentence-transformers')}; answers embedded {counted['embedded']:,} / "
            f"{other['embedded']:,}, draws {counted['tries']:,} / {other['tries']:,}, pairs "
            f"{counted['pairs']:,} / {other['pairs']:,}; spread "
            f"{_spread(runs[side])} / {_spread(runs['peer'])}; CPU {_cpu(runs[side])} / "
            f"{_cpu(runs['peer'])}"
        ),
    }


def _spread(runs: list[dict[str, Any]]) -> str:
    seconds = [run["seconds"] for run in runs]
    return f"{min(seconds):.2f} to {max(seconds):.2f} s"


def _cpu(runs: list[dict[str, Any]]) -> str:
    return f"{statistics.median(run['cpu'] for run in runs):.2f} s"


if __name__ == "__main__":
    main()
