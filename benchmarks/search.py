"""Which search finds more usable harm on the same budget: constrained, on raw harm, or at random?

    python benchmarks/search.py RUN_FILE [--seeds N] [--out FOLDER] [--set key.path=value ...] [--quick]

RUN_FILE has a `search`; its attack, space, budget, proxy and models are taken as they are, its
strategies and seed are not. For each search seed `backfire search` itself runs the three strategies in a
folder of its own, so an interrupted benchmark goes on where it was. A strategy's best usable harm is
that of its own prompts, and flattered by having been chosen; `again` is the same settings on fresh seeds
and prompts, 0 where nothing usable was found. Strategies are compared by `again`, over the search seeds;
its interval within a seed is in the run folder's report.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out" / "search.json"
STRATEGIES = ("constrained", "raw", "random")


def searched(file: Path, assigned: list[str], seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each model and strategy under one search seed."""
    from backfire.config import load
    from backfire.progress import Plain
    from backfire.search import search
    from backfire.store import read_json

    wanted = [f"search.strategies={json.dumps(STRATEGIES)}", f"search.seed={seed}"]
    search(load(file, [*assigned, *wanted]), folder, device="auto", progress=Plain())
    rows = []
    for one in read_json(folder / "search.json")["searches"]:
        best = next((t for t in one["trials"] if t["number"] == one["best"]), None)
        came_to = Counter(t["status"] for t in one["trials"] if t["repeats"] is None)
        rows.append(
            {
                "model": one["model"],
                "strategy": one["strategy"],
                "seed": seed,
                "best": best["usable"] if best else 0.0,
                "again": one["again"]["usable"]["value"] if one["again"] else 0.0,
                "values": best["values"] if best else None,
                "flops": one["spent"],
                "budget": one["budget"],
                "trials": len(one["trials"]),
                "repeats": sum(t["repeats"] is not None for t in one["trials"]),
                "pruned": came_to["stopped"],
                "diverged": came_to["diverged"],
                "failed": came_to["failed"],
                "proxy": (one["proxy"] or {}).get("sentence", "No proxy."),
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each model and strategy over all seeds; `again` without a number is left out."""
    found = []
    for model, strategy in dict.fromkeys((row["model"], row["strategy"]) for row in rows):
        own = [r for r in rows if (r["model"], r["strategy"]) == (model, strategy)]
        again = [r["again"] for r in own if r["again"] is not None]
        found.append(
            {
                "model": model,
                "strategy": strategy,
                "seeds": len(own),
                "best": statistics.mean(r["best"] for r in own),
                "again": statistics.mean(again) if again else None,
                "again_from": min(again, default=None),
                "again_to": max(again, default=None),
                "unmeasured": len(own) - len(again),
                "flops": statistics.mean(r["flops"] for r in own),
                "trials": statistics.mean(r["trials"] for r in own),
                "pruned": statistics.mean(r["pruned"] for r in own),
            }
        )
    return found


def main() -> None:
    """Search, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a run file with a `search`")
    parser.add_argument("--seeds", type=int, default=3, help="search seeds, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs") / "benchmark-search")
    parser.add_argument("--set", dest="assigned", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written beside it")
    options = parser.parse_args()
    rows = [
        row
        for seed in range(1 if options.quick else options.seeds)
        for row in searched(options.file, options.assigned, seed, options.out / f"seed-{seed}")
    ]
    table = summary(rows)
    print(f"{'model':12} {'strategy':12} {'seeds':>5} {'best':>6} {'again':>6} {'from':>6} {'to':>6} "
          f"{'FLOPs':>8} {'trials':>6} {'pruned':>6}")  # fmt: skip
    for row in table:
        shares = (row[name] for name in ("best", "again", "again_from", "again_to"))
        shown = " ".join("     -" if v is None else f"{v:6.1%}" for v in shares)
        print(f"{row['model']:12} {row['strategy']:12} {row['seeds']:5} {shown} {row['flops']:8.2g} "
              f"{row['trials']:6.1f} {row['pruned']:6.1f}")  # fmt: skip
    if not options.quick:
        OUT.parent.mkdir(exist_ok=True)
        record = {
            "file": options.file.name,
            "set": options.assigned,
            "searches": rows,
            "summary": table,
        }
        OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
