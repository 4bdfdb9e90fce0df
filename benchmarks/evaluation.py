"""Seconds to answer multiple-choice sets: our shared-prefix scorer and lm-evaluation-harness's HFLM.

    python benchmarks/evaluation.py [--quick] [--limit N] [--model NAME ...] [--sets NAME ...]
                                    [--shots N ...]

Both sides get the same model object, the same questions as text and the same device; each tokenises and
scores them. The peer runs at the best of several batch sizes, found on a part of the questions before
anything is measured. Runs alternate in one process; medians of three (with `--runs 1` the seconds mean
little, but choices and log-likelihoods are compared all the same). Choices and log-likelihoods of
the two sides are compared item by item: a faster scorer that chooses otherwise is not faster. Each of
`--sets` is asked as the harness does, without examples; MMLU with each number of `--shots`. Several
numbers of examples give one curve; `--shapes 256x8 960x32` the other: models of that width and depth
with random weights, since the time does not depend on what they know.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "out" / "evaluation.json"
BATCH_SIZES = (1, 4, 16, 64)
PART = 48
"""Pairs on which batch sizes are tried."""
RUNS = 3
SUBJECTS = (
    "abstract_algebra", "business_ethics", "college_chemistry", "college_computer_science",
    "college_mathematics", "computer_security", "global_facts", "high_school_computer_science",
    "medical_genetics", "us_foreign_policy",
)  # fmt: skip
"""Those of 100 test questions each: whole subjects, in a time one waits for."""


@dataclass
class Side:
    """One scorer and what it took."""

    score: Any
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self, pairs: tuple[tuple[str, str], ...]) -> list[tuple[float, bool]]:
        """Score once and keep the seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        found: list[tuple[float, bool]] = self.score(pairs)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return found


def our_side(loaded: Any) -> Side:
    """Return ours; nothing is remembered from run to run."""
    from backfire.evaluate.harness import SharedPrefixLM, encode_pairs

    def score(pairs: tuple[tuple[str, str], ...]) -> list[tuple[float, bool]]:
        encode_pairs.cache_clear()
        return SharedPrefixLM(loaded.model, loaded.tokenizer).score_pairs(pairs)

    return Side(score)


def peer_side(loaded: Any, batch_size: int) -> Side:
    """Return the harness's own model class at a batch size."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)

    def score(pairs: tuple[tuple[str, str], ...]) -> list[tuple[float, bool]]:
        requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
        found: list[tuple[float, bool]] = lm.loglikelihood(requests, disable_tqdm=True)
        return found

    return Side(score)


def best_batch_size(loaded: Any, pairs: tuple[tuple[str, str], ...]) -> int:
    """Return the peer's fastest batch size on some of the pairs; stop where it only gets worse."""
    part = pairs[:PART]
    seconds: dict[int, float] = {}
    for size in BATCH_SIZES:
        side = peer_side(loaded, size)
        side.run(part)
        seconds[size] = side.wall[-1]
        if seconds[size] > 1.3 * min(seconds.values()) or size > len(part):
            break
    return min(seconds, key=seconds.__getitem__)


def differing(questions: Any, ours: list[Any], theirs: list[Any]) -> tuple[int, float]:
    """Return the questions whose choice differs (`acc` or `acc_norm`), and the largest difference."""
    wrong, start = 0, 0
    for question in questions:
        end = start + len(question.choices)
        lengths = np.array([float(len(choice)) for choice in question.choices])
        a, b = (np.array([one[0] for one in side[start:end]]) for side in (ours, theirs))
        same = np.argmax(a) == np.argmax(b) and np.argmax(a / lengths) == np.argmax(b / lengths)
        wrong, start = wrong + (not same), end
    gap = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    return wrong, gap


def tokens_read(sets: list[Any], tokenizer: Any) -> tuple[int, int]:
    """Return the tokens a scorer reads that shares nothing, and those of one that shares all it can.

    Both read a question once where its options are single tokens. Padding is left out, and so is what
    questions of a subject share; the ratio is what sharing within a question can bring.
    """

    def length(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    apart = shared = 0
    for one in sets:
        for question in one.questions:
            stem = length(question.description + question.text)
            options = [length(one.delimiter + choice) for choice in question.choices]
            single = max(options) == 1
            apart += stem if single else sum(stem + option - 1 for option in options)
            shared += stem if single else stem + sum(option - 1 for option in options)
    return apart, shared


def compare(label: str, loaded: Any, sets: list[Any], runs: int) -> dict[str, Any]:
    """Measure both sides on some sets."""
    questions = [question for one in sets for question in one.questions]
    pairs = tuple(
        (q.description + q.text, one.delimiter + choice)
        for one in sets
        for q in one.questions
        for choice in q.choices
    )
    size = best_batch_size(loaded, pairs)
    ours, peer = our_side(loaded), peer_side(loaded, size)
    for _ in range(runs):
        mine, theirs = ours.run(pairs), peer.run(pairs)
    wrong, gap = differing(questions, mine, theirs)
    a, b = statistics.median(ours.wall), statistics.median(peer.wall)
    cpu = statistics.median(peer.cpu) / statistics.median(ours.cpu)
    apart, shared = tokens_read(sets, loaded.tokenizer)
    return {
        "name": label,
        "ours": round(a, 3),
        "peer": round(b, 3),
        "ratio": round(b / a, 2),
        "unit": "s",
        "n": len(questions),
        "note": f"peer: HFLM of lm-eval {version('lm_eval')}, batch size {size}; {wrong} of "
        f"{len(questions)} choices differ, log-likelihoods by at most {gap:.1e}; "
        f"ratio of processor time {cpu:.2f}, of tokens that must be read {apart / shared:.2f}; "
        f"{loaded.model.device}, {loaded.model.dtype}",
    }


def with_shape(loaded: Any, shape: str) -> Any:
    """Return the model with another width and depth, e.g. `256x8`, and random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    width, layers = (int(part) for part in shape.split("x"))
    config = deepcopy(loaded.model.config)
    head, groups = 64, config.num_attention_heads // config.num_key_value_heads
    config.update(
        {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "intermediate_size": width * 8 // 3,
            "num_attention_heads": width // head,
            "num_key_value_heads": max(1, width // head // groups),
            "head_dim": head,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.model.dtype)
    return replace(loaded, model=model.to(loaded.model.device).eval())


def show(row: dict[str, Any]) -> None:
    """Print one comparison."""
    print(
        f"{row['name']}: ours {row['ours']:.1f} s, peer {row['peer']:.1f} s, "
        f"{row['ratio']:.2f}x ({row['n']} questions; {row['note']})",
        flush=True,
    )


def models(options: Any) -> Iterator[tuple[str, Any]]:
    """Yield each model to ask, with its name."""
    from backfire.assets import resolve_model
    from backfire.models.load import load

    for name in options.model:
        loaded = load(resolve_model(name), device=options.device, dtype=options.dtype)
        yield name, loaded
        for shape in options.shapes:
            other = with_shape(loaded, shape)
            millions = sum(p.numel() for p in other.model.parameters()) / 1e6
            yield f"random {shape} ({millions:.0f}M)", other


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few questions, one MMLU subject")
    parser.add_argument("--model", nargs="+", default=["smollm2-135m-instruct"])
    parser.add_argument("--shapes", nargs="+", default=[], metavar="WIDTHxLAYERS")
    parser.add_argument("--sets", nargs="*", default=["openbookqa"], help="sets beside MMLU")
    parser.add_argument("--shots", nargs="*", type=int, default=[5])
    parser.add_argument("--limit", type=int, help="questions of each set and subject; default: all")
    parser.add_argument("--runs", type=int, default=RUNS, help="alternating runs of each side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    from backfire.assets import fetch
    from backfire.evaluate.tasks import asset_of, questions

    subjects = SUBJECTS[:1] if options.quick else SUBJECTS
    limit = options.limit or (40 if options.quick else None)
    rows = []
    for name, loaded in models(options):
        for task in options.sets:
            asked = questions(task, fetch(asset_of(task)), limit=limit)
            rows.append(compare(f"{name}, {task}", loaded, [asked], options.runs))
            show(rows[-1])
        for shots in options.shots:
            sets = [
                questions(
                    f"mmlu_{subject}",
                    fetch(asset_of(f"mmlu_{subject}")),
                    num_fewshot=shots,
                    limit=limit,
                )
                for subject in subjects
            ]
            rows.append(compare(f"{name}, mmlu, {shots} examples", loaded, sets, options.runs))
            show(rows[-1])
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
