"""Gradient primitives: exact restores, global norms, hooks that go away, passes that are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from backfire.engine.batching import Stream
from backfire.engine.causal import Causal
from backfire.engine.inner import fine_tune, fresh_adamw
from backfire.engine.original import Original
from backfire.engine.primitives import (
    Step,
    add_,
    add_grads,
    capture,
    dot,
    excursion,
    global_norm,
    perturb,
    restore,
    set_grads,
    snapshot,
)
from backfire.models.load import Loaded, load
from backfire.models.tiny import ARCHITECTURES, save_tiny, tiny_model
from backfire.records import Example

ROWS = [Example(f"q{i}" * (i + 1), f"a{i}" * (5 - i)) for i in range(5)]


@pytest.fixture
def loaded(tiny_folder: Path) -> Loaded:
    return load(tiny_folder)


@pytest.fixture
def step(loaded: Loaded) -> Step:
    loaded.model.requires_grad_(True)
    stream = Stream("train", ROWS, loaded.chat, max_length=64, batch_size=5, seed=0)
    model = Causal(loaded.model, 1 << 26)
    return Step(
        0, model, list(model.parameters()), {"train": stream.batch(0)}, Accelerator(cpu=True), 64
    )


def reference_loss(loaded: Loaded) -> torch.Tensor:
    """One padded batch, labels of -100, transformers' own loss."""
    rows = [loaded.chat.encode(row, 64) for row in ROWS]
    width = max(len(r.ids) for r in rows)
    ids = torch.tensor([r.ids + [0] * (width - len(r.ids)) for r in rows])
    labels = torch.tensor(
        [[-100] * r.start + r.ids[r.start :] + [-100] * (width - len(r.ids)) for r in rows]
    )
    mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in rows])
    loss: torch.Tensor = loaded.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def test_backward_equals_the_padded_batch(loaded: Loaded, step: Step) -> None:
    value, ours = step.grads("train")
    loss = reference_loss(loaded)
    theirs = torch.autograd.grad(loss, step.parameters)
    assert value == pytest.approx(loss.item(), abs=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in step.parameters)
    assert (step.passes.forwards, step.passes.backwards) == (1, 1)


def test_weights_scale_and_add_up(step: Step) -> None:
    _, once = step.grads("train")
    step.backward("train", weight=0.25)
    step.backward("train", weight=0.5)
    for parameter, gradient in zip(step.parameters, once, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 0.75 * gradient, atol=1e-7, rtol=1e-4)


def test_loss_makes_no_gradient_and_counts_a_forward(step: Step) -> None:
    value = step.loss("train")
    assert value == pytest.approx(step.grads("train")[0], abs=1e-6)
    assert (step.passes.forwards, step.passes.backwards) == (2, 1)


def test_restore_is_bit_exact_where_subtraction_is_not() -> None:
    parameters = [torch.nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))]
    saved = snapshot(parameters)
    direction = [torch.full((50,), 0.1234567)]
    add_(parameters, direction, 3.0)
    add_(parameters, direction, -3.0)
    assert not torch.equal(parameters[0], saved[0])
    restore(parameters, saved)
    assert torch.equal(parameters[0], saved[0])


def test_norm_and_inner_product_span_all_tensors() -> None:
    """(3), (4) as one vector have norm 5; with (1), (2): 3 + 8 = 11."""
    a, b = (
        [torch.tensor([3.0]), torch.tensor([[4.0]])],
        [torch.tensor([1.0]), torch.tensor([[2.0]])],
    )
    assert global_norm(a) == pytest.approx(5.0)
    assert dot(a, b) == pytest.approx(11.0)


def test_set_grads_replaces() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    set_grads([parameter], [torch.tensor([5.0, 6.0])])
    assert parameter.grad.tolist() == [5.0, 6.0]


def test_perturb_adds_a_constant_and_leaves_no_hook(loaded: Loaded, step: Step) -> None:
    modules = [layer.self_attn for layer in loaded.model.model.layers]
    with capture(modules) as outputs:
        step.backward("train")
    assert len(outputs) == 2 * len(step.batches["train"].micro(64))
    assert all(output.grad is not None for output in outputs)
    ids = torch.tensor([[5, 6, 7]])
    plain = loaded.model(ids).logits
    with perturb(modules, [torch.zeros(1), torch.zeros(1)]):
        assert torch.equal(loaded.model(ids).logits, plain)
    with perturb(modules, [torch.ones(1), torch.ones(1)]):
        assert not torch.allclose(loaded.model(ids).logits, plain)
    assert torch.equal(loaded.model(ids).logits, plain)
    assert all(not module._forward_hooks for module in modules)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_at_supervised_positions_equal_the_models_own(
    architecture: str, tmp_path: Path
) -> None:
    loaded = load(save_tiny(tmp_path / architecture, architecture))
    whole = Causal(loaded.model, 1 << 26)
    chunked = Causal(loaded.model, 261 * 3)  # three positions at a time
    assert whole.splits_head
    rows = [loaded.chat.encode(row, 64) for row in ROWS]
    (part,) = (
        Stream("t", ROWS, loaded.chat, max_length=64, batch_size=5, seed=0).batch(0).micro(1 << 20)
    )
    logits = loaded.model(part.ids).logits.flatten(0, 1)[part.positions]
    wanted = functional.cross_entropy(logits, part.targets, reduction="none")
    torch.testing.assert_close(whole(part), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(chunked(part), wanted, atol=1e-5, rtol=1e-5)
    assert len(part.targets) == sum(len(r.ids) - r.start for r in rows)


def test_a_model_with_its_own_logit_transform_falls_back(loaded: Loaded) -> None:
    original = loaded.model.forward

    def shifted(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        output.logits = output.logits * 2 + 1
        return output

    loaded.model.forward = shifted
    causal = Causal(loaded.model, 1 << 26)
    assert not causal.splits_head
    (part,) = (
        Stream("t", ROWS, loaded.chat, max_length=64, batch_size=5, seed=0).batch(0).micro(1 << 20)
    )
    logits = loaded.model(part.ids).logits.flatten(0, 1)[part.positions]
    torch.testing.assert_close(
        causal(part), functional.cross_entropy(logits, part.targets, reduction="none")
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_norm_and_attention_are_found_in_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    causal = Causal(model, 1 << 26)
    ids = torch.arange(5, 25).view(2, 10)
    states = causal.states(ids)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    theirs = model(ids, output_hidden_states=True)
    for ours, other in zip(states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(ours, other)
    torch.testing.assert_close(causal.logits(states[-1]), theirs.logits)
    assert not hooks
    assert len(causal.attentions) == len(causal.blocks) == 2

    with capture([causal.blocks[-1]]) as unnormed:
        causal.hidden(ids)
    torch.testing.assert_close(causal.final_norm(unnormed[0]), states[-1])


def test_an_excursion_ends_where_it_began_even_after_an_error(step: Step) -> None:
    def stray() -> None:
        with excursion(step.parameters):
            add_(step.parameters, before, 0.3)
            assert not torch.equal(step.parameters[0], before[0])
            raise ZeroDivisionError

    before = snapshot(step.parameters)
    with pytest.raises(ZeroDivisionError):
        stray()
    assert all(torch.equal(a, b) for a, b in zip(step.parameters, before, strict=True))


def test_shares_of_gradients_add_up(step: Step) -> None:
    _, once = step.grads("train")
    add_grads(step.parameters, once, 0.25)
    add_grads(step.parameters, once, 0.5)
    for parameter, gradient in zip(step.parameters, once, strict=True):
        torch.testing.assert_close(parameter.grad, 0.75 * gradient)


def test_what_is_put_aside_adds_up_and_leaves_no_gradient(step: Step) -> None:
    value, once = step.grads("train")
    aside: list[torch.Tensor] = []
    assert [step.put_aside(aside, weight) for weight in (0.25, 0.5)] == [value, value]
    assert all(parameter.grad is None for parameter in step.parameters)
    for total, gradient in zip(aside, once, strict=True):
        torch.testing.assert_close(total, 0.75 * gradient)


def test_a_loss_is_divided_by_what_it_is_summed_over(step: Step) -> None:
    mean, gradient = step.grads("train")
    total, sums = step.grads("train", over=2)
    supervised = step.batches["train"].supervised
    assert 2 * total == pytest.approx(mean * supervised, rel=1e-5)
    assert step.loss("train", over=2) == pytest.approx(total, rel=1e-6)
    for one, two in zip(gradient, sums, strict=True):
        torch.testing.assert_close(two, one * supervised / 2, atol=1e-5, rtol=1e-4)


def test_randomness_is_shared_by_name_and_given_back(step: Step) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for name in ("a", "b", "a"):
        with step.randomness(name):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.rand(3), expected)
    step.index = 1
    with step.randomness("a"):
        assert not torch.equal(torch.rand(3), drawn[0])


def test_an_inner_attack_is_plain_adamw(step: Step, loaded: Loaded) -> None:
    """Three steps with decay on everything, against torch's own loop on the padded batch."""
    batch, seen = step.batches["train"], []
    with excursion(step.parameters):
        for loss in fine_tune(step, [batch] * 3, fresh_adamw(step.parameters, 1e-2, 0.1)):
            seen.append(loss)
            assert all(p.grad is None for p in step.parameters)
        ours = snapshot(step.parameters)
    theirs = torch.optim.AdamW(step.parameters, lr=1e-2, weight_decay=0.1, foreach=False)
    for loss in seen:
        value = reference_loss(loaded)
        assert value.item() == pytest.approx(loss, abs=1e-5)
        theirs.zero_grad()
        value.backward()
        theirs.step()
    for a, b in zip(ours, step.parameters, strict=True):
        # Early Adam steps follow the sign of a gradient, however small: here up to 0.03 in all.
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)
    assert step.passes.backwards == 3


def test_the_original_is_seen_through_and_left(step: Step) -> None:
    original = Original()
    original.keep(step.parameters)
    first = step.loss("train")
    add_(step.parameters, snapshot(step.parameters), 0.2)
    step.model.train()
    moved = snapshot(step.parameters)
    with original.at_work(step):
        assert not step.model.training
        assert step.loss("train") == pytest.approx(first, abs=1e-7)
    assert step.model.training
    assert all(torch.equal(a, b) for a, b in zip(step.parameters, moved, strict=True))
    assert step.loss("train") != pytest.approx(first, abs=1e-3)


def test_gradients_of_outputs_are_those_of_the_mean_loss(loaded: Loaded, step: Step) -> None:
    """Against autograd on one padded batch: the norm over all cuts is that of the whole."""
    modules = [layer.mlp for layer in loaded.model.model.layers]
    value, seen = step.activation_grads(modules)
    assert len(seen) == len(step.batches["train"].micro(64)) > 1
    assert all(p.grad is None for p in step.parameters)
    assert (step.passes.forwards, step.passes.backwards) == (1, 1)
    with capture(modules) as outputs:
        loss = reference_loss(loaded)
        loss.backward()
    assert value == pytest.approx(loss.item(), abs=1e-5)
    wanted = global_norm([output.grad for output in outputs])
    assert step.activation_norm(seen) == pytest.approx(wanted, rel=1e-4)


def test_every_forward_pass_counts_its_tokens(step: Step) -> None:
    batch = step.batches["train"]
    step.backward("train")
    step.loss(batch)
    assert step.passes.tokens == 2 * batch.tokens
    assert step.passes.supervised == 2 * batch.supervised
