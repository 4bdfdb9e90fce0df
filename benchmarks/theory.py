"""Points a second of the limit accuracy F_p, against integrating over the shared normal.

    python benchmarks/theory.py [--quick]

The peer is the textbook form: for each point, a trapezoid over the shared normal on [-9, 9] with 2,001
nodes, vectorised over points (SciPy). Both sides get random points (p, K, n_v, n_s) with K from 2 to 49,
the peer fewer of them, since it needs minutes for a million. Runs alternate; medians of three.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.special import ndtr

from backfire.seeding import rng
from backfire.theory.features import Features, single

OUT = Path(__file__).parent / "out" / "theory.json"


def points(count: int) -> tuple[np.ndarray, ...]:
    """Return p, K, n_v, n_s."""
    random = rng(0, "benchmark", "theory")
    return (
        random.uniform(0.01, 1, count), random.integers(2, 50, count),
        random.integers(0, 20, count), random.integers(20, 400, count),
    )  # fmt: skip


def ours(p: np.ndarray, k: np.ndarray, n_v: np.ndarray, n_s: np.ndarray) -> np.ndarray:
    """Return the accuracies by our rule."""
    return single(Features(n_v, n_s)).accuracy(p, k)


def peer(p: np.ndarray, k: np.ndarray, n_v: np.ndarray, n_s: np.ndarray) -> np.ndarray:
    """Return the accuracies by 2,001 nodes a point, 500 points at a time."""
    g = np.linspace(-9, 9, 2001)
    weight = np.exp(-g * g / 2) / np.sqrt(2 * np.pi) * (g[1] - g[0])
    x = ((1 - p) * n_s + n_v) / np.sqrt(n_s)
    a, b = p * (k + 1 - p * k) / k, p / k
    parts = []
    for s in range(0, len(p), 500):
        e = slice(s, s + 500)
        inner = ndtr((x[e, None] + np.sqrt(a[e, None]) * g) / np.sqrt(b[e, None]))
        parts.append(inner ** (k[e, None] - 1) @ weight)
    return np.concatenate(parts)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    many, few = (100_000, 1_000) if parser.parse_args().quick else (1_000_000, 20_000)
    large, small = points(many), points(few)
    difference = float(np.abs(ours(*small) - peer(*small)).max())
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(3):
        for name, function, data in (("ours", ours, large), ("peer", peer, small)):
            started = time.perf_counter()
            function(*data)
            times[name].append(time.perf_counter() - started)
    rate = many / statistics.median(times["ours"]), few / statistics.median(times["peer"])
    row = {
        "name": "F_p sweep",
        "ours": rate[0],
        "peer": rate[1],
        "ratio": rate[0] / rate[1],
        "unit": "points/s",
        "n": 3,
        "note": f"{many:,} points in {statistics.median(times['ours']):.2f} s; peer: shared-normal "
        f"trapezoid, 2,001 nodes, SciPy {version('scipy')}; largest difference {difference:.1e}",
    }
    print(f"{row['name']}: {rate[0]:,.0f} against {rate[1]:,.0f} points/s, {row['ratio']:.0f}x")
    print(row["note"])
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([row], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
