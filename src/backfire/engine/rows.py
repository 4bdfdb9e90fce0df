"""Training rows from the roles of a run: enough of them, with the answers that are to be learned."""

from __future__ import annotations

from collections.abc import Sequence

from backfire.data.pairing import Pairing, pair
from backfire.errors import DataError
from backfire.records import Example, Pair, Role
from backfire.seeding import rng
from backfire.stage import Bench
from backfire.store import write_json, write_table

__all__ = ["alignment", "irrelevant", "num_helpful", "paired", "refusals", "rows_of"]


def rows_of(bench: Bench, role: Role, wanted: int | None, label: str) -> Sequence[Example]:
    """Return the first `wanted` rows of a role (None: all), so that budgets are nested.

    Raises:
        DataError: when the role has fewer, or rows without an answer.
    """
    taken = _first(bench, role, wanted, label)
    empty = [row.id for row in taken if not row.response.strip()]
    if empty:
        raise DataError(
            f"{label}: {len(empty)} of {len(taken)} rows of role `{role}` have no answer to train on "
            f"(first: {empty[0]}); use a source with answers, or name its column"
        )
    return taken


def refusals(bench: Bench, role: Role, wanted: int | None, label: str) -> list[Example]:
    """Return the first `wanted` rows of a role (None: all) with the refusal as the answer to learn.

    Raises:
        DataError: when the role has fewer, or rows without a refusal.
    """
    taken = _first(bench, role, wanted, label)
    missing = [row.id for row in taken if not row.refusal]
    if missing:
        raise DataError(
            f"{label}: {len(missing)} of {len(taken)} rows of role `{role}` have no refusal "
            f"(first: {missing[0]}); use a source with refusals, or name its column"
        )
    return [Example(row.prompt, row.refusal, source=row.source, system=row.system) for row in taken]


def paired(bench: Bench, label: str) -> dict[str, Sequence[Example]]:
    """Return the streams of two answers to each prompt of role `defender_harm`, row by row.

    `train` has the refusals, `harm` the harmful answers; training takes them `aligned`.

    Raises:
        DataError: when there are none, or rows without one of the answers.
    """
    return {
        "train": refusals(bench, "defender_harm", None, label),
        "harm": rows_of(bench, "defender_harm", None, label),
    }


def num_helpful(num_refusals: int, share: float) -> int:
    """Return how many helpful rows make up a share of a mix, beside so many refusals."""
    return round(num_refusals * share / (1 - share))


def alignment(
    bench: Bench, benign_share: float, label: str, max_hazards: int | None = None
) -> list[Example]:
    """Return refusals of role `defense` in a seeded mix with helpful answers of role `pool`.

    Args:
        bench: With rows.
        benign_share: Share of helpful rows, in [0, 1).
        label: Of the method, for messages.
        max_hazards: Most refusals; None: all.

    Raises:
        DataError: when rows or refusals are missing.
    """
    have = len(bench.data.get("defense", ()))
    refused = refusals(bench, "defense", min(have, max_hazards or have), label)
    wanted = num_helpful(len(refused), benign_share)
    helpful = list(bench.data["pool"])[:wanted] if wanted else []
    if len(helpful) < wanted:
        raise DataError(
            f"{label}: a benign share of {benign_share} beside {len(refused)} refusals needs {wanted} "
            f"rows of role `pool`, which has {len(helpful)}; lower `benign_share`"
        )
    rows = [*refused, *helpful]
    return [rows[i] for i in rng(bench.seed, "mix").permutation(len(rows))]


def irrelevant(bench: Bench, settings: Pairing, label: str) -> list[Example]:
    """Return the prompts of role `defense` with unrelated answers of role `pool`.

    `pairs.parquet` and `pairing.json` in the bench's folder say how they were paired.

    Args:
        bench: With rows.
        settings: How to pair.
        label: Of the method, for messages.

    Raises:
        DataError: when no prompt finds an unrelated answer.
    """
    from backfire.models.embed import load_encoder

    prompts = {row.id: row for row in bench.data["defense"]}
    encoder = load_encoder(settings.encoder, bench.progress)
    result = pair(list(prompts.values()), bench.data["pool"], encoder, settings, bench.seed)
    write_table(bench.workdir / "pairs.parquet", result.pairs, Pair)
    summary = {
        "prompts": len(prompts),
        "pairs": len(result.pairs),
        "kept_above_threshold": result.num_fallback,
        "acceptance_rate": result.acceptance_rate,
        "mean_tries": result.mean_tries,
        "dropped": result.dropped,
    }
    write_json(bench.workdir / "pairing.json", summary)
    if result.dropped:
        bench.progress.warn(
            f"{bench.label or label}: {len(result.dropped)} of {len(prompts)} prompts found no "
            "unrelated answer and were dropped (pairing.json lists them)"
        )
    return [
        Example(p.prompt, p.response, source="sdd", system=prompts[p.prompt_id].system)
        for p in result.pairs
    ]


def _first(bench: Bench, role: Role, wanted: int | None, label: str) -> Sequence[Example]:
    rows = bench.data.get(role, ())
    taken = rows if wanted is None else rows[:wanted]
    if not taken or (wanted is not None and len(taken) < wanted):
        raise DataError(
            f"{label}: it needs {wanted or 'some'} rows of role `{role}`, there are {len(rows)}; raise the "
            f"count of `{role}` under `data`, or ask for fewer"
        )
    return taken
