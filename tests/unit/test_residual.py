"""Directions in the residual stream: by hand, by hooks and in the weights, on every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from backfire.engine.causal import Causal
from backfire.engine.residual import Residual, unit, without
from backfire.errors import TrainingError
from backfire.models.tiny import ARCHITECTURES, tiny_model

IDS = torch.arange(10, 40).view(2, -1)


def stream(architecture: str) -> Residual:
    """Return a tiny model's stream, with norms and biases that are not those of a new model."""
    model = tiny_model(architecture)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return Residual(Causal(model, 1 << 20))


def direction() -> torch.Tensor:
    return unit(torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def logits(residual: Residual) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = residual.causal.model(IDS).logits
    return found


def test_projection_by_hand() -> None:
    along = unit(torch.tensor([3.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(along, torch.tensor([0.6, 0.8], dtype=torch.float64))
    # (5, 0) has 3 along (.6, .8): (5, 0) - 3 (.6, .8) = (3.2, -2.4).
    left = without(torch.tensor([[5.0, 0.0]], dtype=torch.float64), along)
    torch.testing.assert_close(left, torch.tensor([[3.2, -2.4]], dtype=torch.float64))
    torch.testing.assert_close(without(left, along), left)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_the_weights_is_as_by_hooks(architecture: str) -> None:
    residual, along = stream(architecture), direction()
    plain = logits(residual)
    with residual.ablated(along.float()):
        hooked = logits(residual)
    torch.testing.assert_close(logits(residual), plain, rtol=0, atol=0)
    assert residual.share(IDS, along) > 0.1
    assert (hooked - plain).abs().max() > 1e-3
    residual.bake(along)
    baked = logits(residual)
    assert residual.share(IDS, along) < 1e-5
    if architecture == "gemma2":  # its norms behind the parts make the two differ
        assert len(residual._norms_behind()) == 4
        assert (baked - hooked).abs().max() > 1e-3
    else:
        assert not residual._norms_behind()
        torch.testing.assert_close(baked, hooked, rtol=0, atol=1e-5)
    residual.bake(along)
    torch.testing.assert_close(logits(residual), baked, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_a_part_writes_has_nothing_along_the_direction(architecture: str) -> None:
    residual, along = stream(architecture), direction()
    residual.bake(along)
    written: list[torch.Tensor] = []
    for part in residual.parts:
        part.register_forward_hook(
            lambda m, i, o: written.append(o[0] if isinstance(o, tuple) else o)
        )
    logits(residual)
    assert len(written) == 4
    assert all(float((x.double() @ along).abs().max()) < 1e-5 for x in written)


def test_a_shared_head_keeps_its_weights_and_travels(tmp_path: Path) -> None:
    residual = stream("gemma")
    model = residual.causal.model
    head = model.get_output_embeddings().weight.clone()
    residual.bake(direction())
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert not torch.equal(model.get_input_embeddings().weight, head)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(IDS).logits, logits(residual), rtol=0, atol=1e-6)


def test_pushing_adds_a_vector_at_one_block() -> None:
    residual, vector = stream("llama"), torch.arange(32.0)
    before = residual.causal.states(IDS)
    with residual.pushed(1, vector):
        after = residual.causal.states(IDS)
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1] + vector)


def test_next_words_and_entering_states_are_those_of_unpadded_rows() -> None:
    residual = stream("llama")
    rows = [[5, 6, 7, 8, 9], [10, 11, 12]]
    ids = torch.tensor([rows[0], [*rows[1], 0, 0]])
    lengths = torch.tensor([5, 3])
    found = residual.next_logits(ids, lengths)
    positions = lengths[:, None] - 2 + torch.arange(2)
    states = residual.entering(ids, positions)
    assert states.shape == (2, 2, 2, 32)
    for row, values, entering in zip(rows, found, states, strict=True):
        alone = torch.tensor([row])
        with torch.no_grad():
            own = residual.causal.model(alone).logits[0, -1].double()
        torch.testing.assert_close(values, own, rtol=0, atol=1e-5)
        for layer in range(2):
            own = residual.causal.states(alone)[layer][0, -2:]
            torch.testing.assert_close(entering[:, layer], own, rtol=0, atol=1e-5)


def test_a_part_without_an_output_matrix_is_an_error() -> None:
    residual = stream("llama")
    residual.parts[0] = torch.nn.Linear(32, 31)
    with pytest.raises(TrainingError, match="no matrix"):
        residual.bake(direction())
