"""`backfire theory`: evaluate the theory from the command line.

Every verb prints a short text, or JSON with `--json`. Numbers come with their errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from backfire.errors import BackfireError, ConfigError

if TYPE_CHECKING:
    from backfire.theory.features import Features, Model
    from backfire.theory.limit import Estimate
    from backfire.theory.simulate import Simulation
    from backfire.theory.theorems import Interpolation, Statement

__all__ = ["app"]


class _Verbs(TyperGroup):
    """Verbs whose mistakes are messages, mounted or alone."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BackfireError as error:
            typer.secho(
                f"error: {error}",
                err=True,
                fg=typer.colors.RED if sys.stderr.isatty() else None,
            )
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    name="theory",
    cls=_Verbs,
    help="Evaluate the theory behind self-degraded defense: accuracies, theorems, where they hold.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Shift = Annotated[float, typer.Option("--p", help="Probability that a spurious feature moves.")]
Classes = Annotated[int, typer.Option("--classes", help="Number of classes K.")]
Weight = Annotated[float, typer.Option("--weight", help="Share of the first (aligned) model.")]
Draws = Annotated[int, typer.Option("--draws", help="Draws of each simulation.")]
Sigma = Annotated[float, typer.Option("--sigma", help="Noise of the second simulation; 0: none.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the simulations.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Counts = Annotated[str, typer.Option(metavar="V,S", help="Invariant and spurious features.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


@app.command()
def accuracy(
    p: Shift,
    classes: Classes,
    invariant: Annotated[int, typer.Option(help="Invariant features.")],
    spurious: Annotated[int, typer.Option(help="Spurious features.")],
    draws: Draws = 400_000,
    sigma: Sigma = 0.003,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Accuracy of one model after the shift: limit formula, exact value, simulations."""
    from backfire.theory.features import Features, single

    model = single(Features(invariant, spurious))
    _print(_accuracies(model, p, classes, draws, sigma, seed), as_json)


@app.command()
def ensemble(
    first: Counts,
    second: Counts,
    p: Shift,
    classes: Classes,
    shared: Counts = "0,0",
    weight: Weight = 0.5,
    kind: Annotated[
        Literal["weights", "outputs"], typer.Option(help="Interpolate weights, or add outputs.")
    ] = "weights",
    draws: Draws = 400_000,
    sigma: Sigma = 0.003,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Accuracy of an ensemble of two models, and of both alone."""
    from backfire.theory.features import output_ensemble, single, weight_ensemble

    build = weight_ensemble if kind == "weights" else output_ensemble
    one, two = _features(first), _features(second)
    model = build(one, two, _features(shared), weight)
    told = _accuracies(model, p, classes, draws, sigma, seed)
    told["first alone"] = {"limit": float(single(one).accuracy(p, classes))}
    told["second alone"] = {"limit": float(single(two).accuracy(p, classes))}
    _print(told, as_json)


@app.command()
def theorem1(
    aligned: Counts,
    optimal: Counts,
    p: Shift,
    classes: Classes,
    shared: Counts = "0,0",
    weight: Weight = 0.5,
    form: Annotated[str, typer.Option(help="Form of Lemma 1: lin or sqrt.")] = "lin",
    as_json: Json = False,
) -> None:
    """Does alignment accuracy's bound fall as the attacker's spurious features grow?"""
    from backfire.theory import theorems

    case = _case(aligned, optimal, shared, weight)
    told = _told(theorems.theorem1(case, p, classes, _form(form)))
    told["reading"] = (
        "one more spurious feature of the attacker's lowers the bound"
        if told["conclusion"]
        else "one more spurious feature of the attacker's raises the bound: diversification helps"
    )
    _print(told, as_json)


@app.command()
def theorem2(
    aligned: Counts,
    optimal: Counts,
    p: Shift,
    classes: Classes,
    shared: Counts = "0,0",
    weight: Weight = 0.5,
    form: Annotated[str, typer.Option(help="Form of Lemma 1: lin or sqrt.")] = "lin",
    as_json: Json = False,
) -> None:
    """Do Theorem 2's premises hold, does accuracy fall, and what would make it fall?"""
    from backfire.theory import theorems
    from backfire.theory.region import invariant_needed

    case = _case(aligned, optimal, shared, weight)
    told = _told(theorems.theorem2(case, p, classes, _form(form)))
    if form == "lin" and p > 0:
        needed = float(
            invariant_needed(case.aligned.spurious, case.optimal, p, weight, case.shared)
        )
        told["invariant features needed"] = needed if needed < float("inf") else None
    _print(told, as_json)


@app.command()
def region(
    p: Annotated[
        list[float] | None, typer.Option("--p", help="Shift; repeatable [1 .99 .95 .9 .7].")
    ] = None,
    weight: Weight = 0.5,
    draws: Draws = 400_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """In what share of a box of cases that meet Theorem 2's premises does accuracy fall?"""
    from backfire.theory.region import Sampling, enough_invariant_ratio, share_that_falls

    shifts = p or [1.0, 0.99, 0.95, 0.9, 0.7]
    told: dict[str, Any] = {
        "weight": weight,
        "always falls at p=1 up to n*_v/n_v": float(enough_invariant_ratio(weight)),
    }
    samplings: tuple[Sampling, ...] = ("conditional", "rejection")
    for sampling in samplings:
        shares = share_that_falls(shifts, sampling, weight, draws, seed)
        told[f"share that falls, {sampling} sampling"] = {
            f"p={shift:g}": _estimate(share) for shift, share in zip(shifts, shares, strict=True)
        }
    _print(told, as_json)


@app.command()
def learned(
    first: Counts,
    second: Counts,
    p: Shift,
    classes: Classes,
    shared: Counts = "0,0",
    fit: Annotated[str, typer.Option(help="means or network.")] = "network",
    draws: Draws = 100_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit two models, interpolate their weights, and compare what is measured with the formula."""
    from backfire.theory.learned import learned_check

    points = learned_check(
        _features(first), _features(second), _features(shared), p, classes, fit,  # type: ignore[arg-type]
        draws=draws, seed=seed,
    )  # fmt: skip
    told = {
        f"weight {q.weight:g}": {
            "limit": q.formula,
            "finite": _estimate(q.counted),
            "limit, fitted weights": q.fitted_formula,
            "finite, fitted weights": _estimate(q.fitted_counted),
            "measured": _estimate(q.measured),
        }
        for q in points
    }
    _print(told, as_json)


@app.command("bradley-terry")
def bradley_terry(
    probabilities: Annotated[
        str, typer.Option(metavar="P,P,...", help="Token probabilities where the answers part.")
    ],
    chosen: Annotated[int, typer.Option(help="Index of the token trained on.")] = 0,
    other: Annotated[int, typer.Option(help="Index of the model's own token.")] = 1,
    rate: Annotated[float, typer.Option(help="Size of the step in the logits.")] = 0.1,
    as_json: Json = False,
) -> None:
    """What one step of fine-tuning on a token does to another token."""
    from backfire.theory import bradley_terry as lab

    row = _numbers(probabilities, "--probabilities")
    change = lab.log_probability_change(row, chosen, other, rate)
    gain = lab.log_probability_change(row, chosen, chosen, rate)
    _print(
        {
            "change of log p(chosen)": gain,
            "change of log p(other)": change,
            "first order": lab.first_order_change(row, chosen, other, rate),
            "other rises": lab.rises(row, chosen, other),
            "preference for chosen": float(lab.preference(gain, change)),
        },
        as_json,
    )


@app.command()
def page(out: Out = Path("theory")) -> None:
    """Write the figures (SVG) and one self-contained page with sliders."""
    from backfire.theory.page import write_page

    typer.echo(str(write_page(out)))


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A model folder, an asset name or a hub id.")],
    out: Out = Path("trace"),
    hazards: Annotated[int, typer.Option(help="Hazardous prompts each defense trains on.")] = 64,
    prompts: Annotated[
        Literal["same", "other"],
        typer.Option(help="Attack on the defender's own prompts, or on others."),
    ] = "same",
    learning_rate: Annotated[float, typer.Option(help="The attack's learning rate.")] = 2e-5,
    questions: Annotated[int, typer.Option(help="SciQ questions of the probe; 0: none.")] = 60,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    seed: Seed = 0,
) -> None:
    """Train SDD and a refusal control, attack both, and trace preference, losses, capability."""
    from backfire.progress import make
    from backfire.store import write_text
    from backfire.theory.contest import Contest, prepared, trace_figure

    settings = Contest(prompts=prompts)
    attack = settings.attack.model_copy(update={"learning_rate": learning_rate})
    progress = make("auto")
    try:
        traces = prepared(
            model, out, settings.model_copy(update={"attack": attack}), hazards, questions,
            device=device, seed=seed, progress=progress,
        )  # fmt: skip
    finally:
        progress.close()
    write_text(out / "trace.svg", trace_figure(traces).svg)
    for name, points in traces.items():
        first, last = points[0], points[-1]
        typer.echo(
            f"{name}: log p(y_o|x) {first.log_own:.1f} -> {last.log_own:.1f}, "
            f"preference {first.preference:.2f} -> {last.preference:.2f}, "
            f"benign loss {first.benign_nll:.3f} -> {last.benign_nll:.3f}"
        )
    typer.echo(str(out / "trace.parquet"))


def _accuracies(
    model: Model, p: float, classes: int, draws: int, sigma: float, seed: int
) -> dict[str, Any]:
    from backfire.theory.exact import TooLongError, exact_accuracy
    from backfire.theory.limit import QUADRATURE_ERROR
    from backfire.theory.simulate import simulated_accuracy

    told: dict[str, Any] = {
        "argument": float(model.argument(p)),
        "limit": {"accuracy": float(model.accuracy(p, classes)), "error": QUADRATURE_ERROR},
    }
    try:
        exact = exact_accuracy(model, p, classes)
        told["exact"] = {
            "accuracy": exact.random_ties,
            "strict": exact.strict,
            "tie mass": exact.tie_mass,
            "error": 1e-10,
        }
    except TooLongError as error:
        told["exact"] = {"accuracy": None, "why": str(error)}
    told["simulation"] = _simulation(simulated_accuracy(model, p, classes, draws, seed))
    if sigma:
        noisy = simulated_accuracy(model, p, classes, max(2, draws // 10), seed, sigma)
        told[f"simulation, sigma {sigma:g}"] = _simulation(noisy)
    return told


def _simulation(drawn: Simulation) -> dict[str, Any]:
    return {
        "accuracy": _estimate(drawn.random_ties),
        "strict": _estimate(drawn.strict),
        "tie mass": _estimate(drawn.tie_mass),
        "draws": drawn.strict.draws,
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "standard error": estimate.standard_error}


def _told(statement: Statement) -> dict[str, Any]:
    return {
        "premises": bool(statement.premises),
        "conclusion": bool(statement.conclusion),
        "holds": bool(statement.holds),
        "accuracy before": float(statement.aligned),
        "accuracy after": float(statement.attacked),
        "change": float(statement.change),
    }


def _case(aligned: str, optimal: str, shared: str, weight: float) -> Interpolation:
    from backfire.theory.theorems import Interpolation

    return Interpolation(_features(aligned), _features(optimal), _features(shared), weight)


def _form(form: str) -> Any:
    return form  # checked, with a near miss, where it is used


def _features(text: str) -> Features:
    from backfire.theory.features import Features

    numbers = _numbers(text, "a count of features")
    if len(numbers) != 2:
        raise ConfigError(
            f"reading a count of features: met {text!r}; write invariant,spurious, such as 5,40"
        )
    return Features(*numbers)


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"reading {what}: met {text!r}; write numbers separated by commas, such as 5,40"
        ) from None


def _print(told: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(_lines(told)))


def _lines(told: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    width = max(len(name) for name in told)
    for name, value in told.items():
        if isinstance(value, dict) and set(value) != {"value", "standard error"}:
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:<{width}}  {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.5f} ± {value['standard error']:.5f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
