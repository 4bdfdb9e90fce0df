"""RepNoise: the discrepancy, the masks, the heads of every layer, and what training with it does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backfire.defend import RepNoise
from backfire.engine.batching import difference
from backfire.engine.primitives import Step
from backfire.engine.rows import refusals, rows_of
from backfire.models.tiny import ARCHITECTURES, save_tiny
from backfire.numerics.mmd import mmd
from backfire.records import Checkpoint, Example
from by_hand import gradient_of, step_of
from small_methods import DATA, bench, build


def repnoise(**over: Any) -> RepNoise:
    return RepNoise.model_validate({"name": "repnoise", **over})


def make(folder: Path, place: Path, rows: list[Example] | None = None, **over: Any) -> Step:
    here = bench(place, data={"defender_harm": rows or DATA["defender_harm"]})
    streams = {
        "train": refusals(here, "defender_harm", None, "x"),
        "harm": rows_of(here, "defender_harm", None, "x"),
    }
    return step_of(folder, streams, together=["harm"], **over)


@pytest.fixture
def step(tiny_folder: Path, tmp_path: Path) -> Step:
    return make(tiny_folder, tmp_path)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def direct(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the discrepancy by its definition, pair by pair, in fp64."""
    both = [v.double() for v in (*x, *y)]
    n = len(both)
    gaps = [[float(((a - b) ** 2).sum()) for b in both] for a in both]
    width = sum(map(sum, gaps)) / (n * n - n)

    def kernel(gap: float) -> float:
        return sum(math.exp(-gap / (width * 2**i / 4)) for i in range(5))

    m = len(x)
    total = 0.0
    for i in range(m):
        for j in range(m):
            total += kernel(gaps[i][j]) + kernel(gaps[m + i][m + j])
            total -= kernel(gaps[i][m + j]) + kernel(gaps[m + i][j])
    return total / (m * m)


def test_two_vectors_by_hand() -> None:
    """At distance d both kernels of a vector with itself are 5, the width is d^2."""
    cross = sum(math.exp(-1 / 2**i) for i in (-2, -1, 0, 1, 2))
    found = mmd(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    assert float(found) == pytest.approx(10 - 2 * cross, abs=1e-6)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31 - 1))
def test_the_discrepancy_is_that_of_its_definition(rows: int, width: int, seed: int) -> None:
    x, y = drawn(rows, width, seed=seed), drawn(rows, width, seed=seed + 1)
    value = float(mmd(x, y))
    assert value == pytest.approx(direct(x, y), abs=1e-5)
    assert value > -1e-5
    assert value == pytest.approx(float(mmd(y, x)), abs=1e-5)
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-5)


def test_the_discrepancy_grows_with_a_shift_of_the_mean() -> None:
    x, y = drawn(20, 5), drawn(20, 5, seed=1)
    values = [float(mmd(x, y + shift)) for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_equal_vectors_have_no_discrepancy_and_a_finite_gradient() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    value = mmd(x, torch.ones(3, 4))
    value.backward()
    assert value == 0
    assert x.grad is not None
    assert bool((x.grad == 0).all())


def test_the_gradient_takes_the_widths_for_constants() -> None:
    """By autograd through the definition, in fp64."""
    x, y = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    (found,) = torch.autograd.grad(mmd(x, y), x)
    both = torch.cat([x, y]).double()
    gaps = (both[:, None] - both).square().sum(-1)
    width = gaps.detach().sum() / 56
    kernels = [torch.exp(-gaps / (width * 2.0**i)) for i in range(-2, 3)]
    signs = torch.tensor([1.0] * 4 + [-1.0] * 4).double()
    (wanted,) = torch.autograd.grad((signs @ sum(kernels) @ signs) / 16, x)  # type: ignore[operator]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_samples_of_different_sizes() -> None:
    """Each mean is over its own pairs."""
    x, y = drawn(2, 3), drawn(5, 3, seed=1)
    both = torch.cat([x, y]).double()
    gaps = (both[:, None] - both).square().sum(-1)
    width = gaps.sum() / 42
    kernel = sum(torch.exp(-gaps / (width * 2.0**i)) for i in range(-2, 3))
    assert isinstance(kernel, torch.Tensor)
    wanted = kernel[:2, :2].mean() + kernel[2:, 2:].mean() - 2 * kernel[:2, 2:].mean()
    assert float(mmd(x, y)) == pytest.approx(float(wanted), abs=1e-6)


def test_equal_answers_leave_nothing_to_learn_and_nothing_breaks(
    tiny_folder: Path, tmp_path: Path
) -> None:
    same = [replace(row, refusal=row.response) for row in DATA["defender_harm"]]
    step = make(tiny_folder, tmp_path, same)
    for settings in (repnoise(), repnoise(compat=True)):
        step.clear()
        terms = settings.step(step)
        assert terms == {"loss": 0, "retain": 0, "ascent": 1, "noise": 0}
        assert bool((gradient_of(step) == 0).all())


def test_it_takes_two_passes_and_one_piece_of_the_harmful_batch(
    tiny_folder: Path, tmp_path: Path
) -> None:
    found = []
    for budget in (8, 4096):
        step = make(tiny_folder, tmp_path, token_budget=budget)
        terms = repnoise(beta=1, alpha=0.7).step(step)
        assert (step.passes.forwards, step.passes.backwards) == (2, 2) == repnoise().passes(1)
        found.append((gradient_of(step), terms))
    assert len(step.batches["train"].micro(8)) == 4, "the refusals are cut"
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_terms_add_up_and_ascent_is_at_least_one(step: Step) -> None:
    terms = repnoise(alpha=0.5, beta=0.3).step(step)
    wanted = terms["retain"] + 0.3 * terms["noise"] - 0.5 * math.log(terms["ascent"])
    assert terms["loss"] == pytest.approx(wanted, rel=1e-6)
    assert terms["ascent"] > 1
    assert terms["noise"] > 0


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ascent_reads_every_hidden_state(
    architecture: str, compat: bool, tmp_path: Path
) -> None:
    """The library's own hidden states, final norm and head; L + 2 losses over L + 1."""
    step = make(save_tiny(tmp_path / architecture, architecture), tmp_path)
    step.model.eval()
    settings = repnoise(mask="answer") if not compat else repnoise(compat=True)
    ascent = settings.step(step)["ascent"]

    refused, harmful = settings._masked(step)
    (part,) = harmful.micro(1 << 20)
    assert part.ids.shape[0] == 4
    model = step.causal.model
    with torch.no_grad():
        output = model(part.ids, output_hidden_states=True)
    norm, head = step.causal.final_norm, step.causal.logits
    with torch.no_grad():
        lenses = [head(norm(h)) for h in output.hidden_states[:-1]]
        lenses += [head(norm(output.hidden_states[-1]))] if compat else [output.logits]
    total = 0.0
    for logits in [*lenses, output.logits]:
        flat = logits.flatten(0, 1)
        at = part.positions
        kept = part.targets >= 0
        if compat:
            # Logits times the mask of where they stand; labels of id 0 are left out.
            marked = torch.zeros(len(flat), dtype=torch.bool)
            marked[at + 1] = True
            flat, kept = flat * marked[:, None], part.targets != 0
        logs = torch.log_softmax(flat[at][kept], -1)
        total -= float(logs.gather(1, part.targets[kept][:, None]).mean())
    assert ascent == pytest.approx(1 + total / len(output.hidden_states), rel=1e-4)
    assert len(output.hidden_states) == len(step.causal.blocks) + 1
    assert len(refused.rows) == len(harmful.rows)


def test_pads_are_answers_in_the_official_code_alone(step: Step) -> None:
    clean, quirky = repnoise()._masked(step), repnoise(compat=True)._masked(step)
    pad = step.streams["train"].chat.tokenizer.pad_token_id
    assert all(pad not in row.ids for batch in clean for row in batch.rows)
    for refused, harmful in zip(quirky[0].rows, quirky[1].rows, strict=True):
        assert len(refused.ids) == len(harmful.ids)
        assert refused.supervised == harmful.supervised
        assert [refused.ids[i] != harmful.ids[i] for i in refused.supervised] == [True] * len(
            refused.supervised
        )
    shorter = [len(a.ids) < len(b.ids) for a, b in zip(clean[0].rows, clean[1].rows, strict=True)]
    assert any(shorter)
    assert clean[0] == difference(step.batches["train"], step.batches["harm"])


def test_noise_is_new_at_every_step_and_the_same_in_every_run(
    tiny_folder: Path, tmp_path: Path
) -> None:
    def noise(index: int, seed: int = 0) -> float:
        step = make(tiny_folder, tmp_path, batch_size=10)  # all rows, in whatever order
        step.index, step.seed = index, seed
        return repnoise().step(step)["noise"]

    assert noise(0) == noise(0)
    assert len({noise(0), noise(1), noise(0, seed=1)}) == 3


def test_the_noise_term_sees_harmful_tokens_alone(step: Step) -> None:
    """What stands before them, and what comes with longer neighbours, is blank in both samples."""
    from backfire.engine.primitives import capture

    _, harmful = repnoise()._masked(step)
    (part,) = harmful.micro(1 << 20)
    with capture(step.causal.mlps) as outputs, torch.no_grad():
        step.causal.hidden(part.ids)
    own = part.positions + 1
    noise = repnoise()._noise(step, part, outputs)
    disturbed = []
    for output in outputs:
        other = torch.full_like(output, 7.0)
        other.flatten(0, 1)[own] = output.flatten(0, 1)[own]
        disturbed.append(other)
    assert torch.equal(repnoise()._noise(step, part, disturbed), noise)
    assert bool((part.ids.flatten()[own] == part.targets).all())


def test_training_raises_the_harmful_loss(tiny_folder: Path, tmp_path: Path) -> None:
    ends = {}
    for alpha in (0, 1):
        training = {"steps": 20, "learning_rate": 2e-3, "warmup": 0, "schedule": "constant"}
        member = build(RepNoise, alpha=alpha, beta=0, training=training)
        made = member(Checkpoint(tiny_folder, "k"), bench(tmp_path / str(alpha)))
        ends[alpha] = make(made.path, tmp_path, batch_size=10).loss("harm")
    assert ends[1] > ends[0] + 0.5


@pytest.mark.parametrize(
    ("term", "weights"), [("noise", {"alpha": 0, "beta": 1e4}), ("ascent", {"alpha": 1, "beta": 0})]
)
def test_a_step_down_its_gradient_noises_and_unlearns(
    term: str, weights: dict[str, float], step: Step
) -> None:
    """Less discrepancy from the same noise; more surprise, by as much as the gradient's length says."""
    before = repnoise(alpha=0, beta=0).step(step)[term]
    retain = gradient_of(step)
    step.clear()
    repnoise(**weights).step(step)
    slope = (gradient_of(step) - retain) / max(weights.values())
    rate = 2e-5 * before / float(slope.square().sum())
    with torch.no_grad():
        for parameter, part in zip(
            step.parameters, slope.split([p.numel() for p in step.parameters]), strict=True
        ):
            parameter -= rate * part.view_as(parameter)
    step.clear()
    after = repnoise(alpha=0, beta=0).step(step)[term]
    if term == "noise":  # the kernels' widths move too, and are left out of the gradient
        assert after < before
    else:  # the loss holds its logarithm
        gain = math.log(after / before)
        assert gain == pytest.approx(rate * float(slope.square().sum()), rel=0.2)


def test_its_price_is_that_of_two_passes_over_the_pairs() -> None:
    counts = {"defender_harm": 12, "defense": 99, "pool": 99}
    assert repnoise().rows_used(counts) == {"defender_harm": 12}
    assert repnoise().epoch_rows(counts) == 12
