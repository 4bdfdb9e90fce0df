"""SDD and a refusal-trained control under the same attack, traced side by side.

>>> traces = contest(checkpoint, data, folder, Contest())              # doctest: +SKIP
>>> traces["sdd"][-1].benign_nll - traces["sdd"][0].benign_nll         # doctest: +SKIP

Both defenses are trained from the same model on the same hazardous prompts, both results are attacked
with the same rows, order and steps, and both are measured on the same prompts and benign text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field

from backfire.attack import Harmful
from backfire.defend import SDD, RefusalSFT
from backfire.engine import Training
from backfire.errors import DataError
from backfire.models.load import Loaded
from backfire.progress import Progress, Silent
from backfire.records import Checkpoint, Example, Pair, Role
from backfire.report.palette import MARKERS, series
from backfire.report.svg import Picture, drawing
from backfire.stage import Bench, Settings
from backfire.store import folder_key, read_table, write_table
from backfire.theory.trace import Choice, TracePoint, Tracer, TraceRow, choice_accuracy

__all__ = ["Contest", "contest", "prepared", "trace_figure"]

_Data = Mapping[Role, Sequence[Example]]


class Contest(Settings):
    """What is trained, attacked and measured."""

    sdd: SDD = SDD(training=Training(learning_rate=2e-5, epochs=3, batch_size=8))
    """The defense under test. Ours: a rate at which a small model learns the pairs."""
    control: RefusalSFT = RefusalSFT(training=Training(learning_rate=2e-5, epochs=3, batch_size=8))
    """The control. Ours: as many passes at the same rate."""
    attack: Training = Training(learning_rate=2e-5, epochs=5, batch_size=10, clip_norm=None)
    """The attack's training. Batch, epochs and no clipping are Qi et al. 2023's."""
    prompts: Literal["same", "other"] = "same"
    """Attack on the defender's own prompts (`same`, where the mechanism should act most directly) or
    on the attacker's (`other`). Ours."""
    every: int = Field(5, ge=1)
    """Steps between measurements. Ours."""
    num_rows: int = Field(32, ge=1)
    """Traced prompts. Ours."""
    num_benign: int = Field(32, ge=1)
    """Held-out benign pairs. Ours."""


def contest(
    checkpoint: Checkpoint,
    data: _Data,
    folder: Path,
    settings: Contest,
    *,
    device: str = "auto",
    seed: int = 0,
    capability: Callable[[Loaded], float] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[TracePoint]]:
    """Return a trace for each defense; `folder/trace.parquet` keeps them.

    Args:
        checkpoint: Where both defenses start.
        data: Roles `defense` (with compliant answers and refusals), `pool`, `probe`, and `attacker`
            for `prompts="other"`.
        folder: Where checkpoints and the table go.
        settings: What is trained, attacked and measured.
        device: As in `Bench`.
        seed: Of pairing, training and attack.
        capability: Probe run at each measurement.
        progress: Where to report.

    Raises:
        DataError: a role lacks rows, or rows lack answers.
    """
    progress = progress or Silent()
    attack_rows = list(data["defense" if settings.prompts == "same" else "attacker"])
    probe = list(data["probe"])[: settings.num_benign]
    traces: dict[str, list[TracePoint]] = {}
    for member in (settings.control, settings.sdd):
        bench = _bench(folder / member.label / "defended", device, seed, data, progress)
        defended = member(checkpoint, bench)
        rows = _traced(member, bench, data)[: settings.num_rows]
        tracer = Tracer(rows, probe, settings.every, capability)
        _attack(defended, attack_rows, settings, tracer, bench, folder / member.label / "attacked")
        traces[member.label] = tracer.points
    table = [{"defense": name, **asdict(p)} for name, points in traces.items() for p in points]
    write_table(folder / "trace.parquet", table)
    return traces


def prepared(
    model: str,
    folder: Path,
    settings: Contest,
    hazards: int,
    questions: int,
    *,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, list[TracePoint]]:
    """Return `contest`'s traces for a model by name, on the invented hazards that come with us.

    Args:
        model: A model folder, an asset name or a hub id.
        folder: Where everything goes.
        settings: What is trained, attacked and measured.
        hazards: Prompts each defense trains on; the attack gets as many.
        questions: SciQ questions of the capability probe; 0 for none.
        device: As in `Bench`.
        seed: Of the split, pairing, training and attack.
        progress: Where to report.

    Raises:
        BackfireError: the model or the questions cannot be had, or rows do not suffice.
    """
    from backfire.assets import resolve_model
    from backfire.data import Counts, DataSettings, load_roles

    progress = progress or Silent()
    path = resolve_model(model, progress)
    counts = Counts(defense=hazards, attacker=hazards, defender_harm=0, evaluation=0, benign=0)
    data = load_roles(DataSettings(counts=counts), seed, progress)
    probe = _sciq(questions, progress)
    return contest(
        Checkpoint(path, folder_key(path)), data, folder, settings, device=device, seed=seed,
        capability=(lambda loaded: choice_accuracy(loaded, probe)) if probe else None,
        progress=progress,
    )  # fmt: skip


def _sciq(count: int, progress: Progress) -> list[Choice]:
    """Return the first questions of SciQ, the right option in each place equally often."""
    if not count:
        return []
    from backfire.assets import fetch

    choices = []
    rows: list[dict[str, str]] = read_table(fetch("sciq", progress) / "validation.parquet", dict)
    for index, row in enumerate(rows[:count]):
        right = row["correct_answer"]
        options = [row[f"distractor{n}"] for n in (1, 2, 3)]
        options.insert(index % 4, right)
        choices.append(Choice(row["question"], tuple(options), index % 4))
    return choices


def trace_figure(traces: Mapping[str, Sequence[TracePoint]]) -> Picture:
    """Return six panels over the attack's steps, one line a defense."""
    panels: tuple[tuple[str, str], ...] = (
        ("log_chosen", "log π(y_c|x), nats an answer"),
        ("log_own", "log π(y_o|x), nats an answer"),
        ("preference", "P(y_c over y_o) since step 0"),
        ("own_nll_alone", "loss of y_o alone (dashed: instructed)"),
        ("benign_nll", "loss of held-out benign text"),
        ("capability", "capability probe"),
    )
    with drawing("trace", 7.4, 4.6) as canvas:
        grid = canvas.figure.subplots(2, 3, sharex=True)
        colors = series(list(traces))
        for axes, (name, title) in zip(grid.flat, panels, strict=True):
            for index, (label, points) in enumerate(traces.items()):
                values = [getattr(p, name) for p in points]
                if None not in values:
                    axes.plot(
                        [p.step for p in points], values, f"{MARKERS[index]}-", markersize=3,
                        linewidth=1.2, color=colors[label].light, label=label,
                    )  # fmt: skip
            if name == "own_nll_alone":
                _instructed(axes, traces, colors)
            axes.set_title(title, fontsize=8, fontweight="normal")
            axes.grid(axis="y")
        grid[0, 0].legend(fontsize=7.5)
        for axes in grid[1]:
            axes.set_xlabel("attack step")
        return canvas.picture(
            "The Bradley-Terry quantities along an attack",
            "Means over the traced prompts; y_c is the attacker's answer, y_o the one the defense "
            "trained. Lower middle: the same y_o without a prompt (dashed: under its own instruction, "
            "where it has one). SDD's hypothesis asks the benign loss to rise as log π(y_o|x) falls, and "
            "more than in the control.",
            "Six time series for each defense.",
        )


def _instructed(axes, traces, colors) -> None:  # type: ignore[no-untyped-def]
    """Add the loss of y_o under its own instruction, dashed."""
    for label, points in traces.items():
        values = [p.own_nll_instructed for p in points]
        if None not in values:
            axes.plot(
                [p.step for p in points], values, "--", color=colors[label].light, linewidth=1
            )


def _bench(folder: Path, device: str, seed: int, data: _Data, progress: Progress) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(
        folder, seed=seed, device=device, data=data, progress=progress, label=folder.parent.name
    )


def _traced(member: SDD | RefusalSFT, bench: Bench, data: _Data) -> list[TraceRow]:
    """Return the hazards the defense trained on, with the attacker's answer and the one it taught."""
    hazards = {row.id: row for row in data["defense"]}
    empty = [row.id for row in hazards.values() if not row.response.strip()]
    if empty:
        raise DataError(
            f"tracing {member.label}: {len(empty)} rows of role `defense` have no compliant answer (first: "
            f"{empty[0]}), and without one there is nothing to prefer; use a source that has them"
        )
    if isinstance(member, RefusalSFT):
        return [
            TraceRow(r.prompt, r.response, r.refusal, system=r.system) for r in hazards.values()
        ]
    pool = {row.id: row.prompt for row in data["pool"]}
    return [
        TraceRow(
            pair.prompt,
            hazards[pair.prompt_id].response,
            pair.response,
            pool.get(pair.response_id, ""),
            hazards[pair.prompt_id].system,
        )
        for pair in read_table(bench.workdir / "pairs.parquet", Pair)
    ]


def _attack(
    defended: Checkpoint,
    rows: Sequence[Example],
    settings: Contest,
    tracer: Tracer,
    bench: Bench,
    folder: Path,
) -> None:
    from backfire.engine.loop import train

    attack = Harmful(shots=len(rows), training=settings.attack)
    attacked = _bench(folder, bench.device, bench.seed, {}, bench.progress)
    train(defended, attacked, settings.attack, {"train": rows}, attack, watch=tracer)
