"""Where a transformer's parts are, whatever its architecture calls them; and which of them may move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from backfire.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backfire.engine.settings import Training

__all__ = ["is_attention", "is_norm", "movable", "scope_words", "stack", "unknown"]


def stack(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """Return the list of blocks, after the module it stands in.

    Raises:
        TrainingError: when there is none.
    """
    for module in model.modules():
        for child in module.children():
            many = isinstance(child, nn.ModuleList)
            if many and len(child) == model.config.num_hidden_layers:
                return module, child
    raise unknown(model, f"no list of {model.config.num_hidden_layers} blocks")


def is_attention(module: nn.Module) -> bool:
    """Tell a block's attention by the name of its class."""
    name = type(module).__name__.lower()
    return ("attention" in name or "attn" in name) and not is_norm(module)


def is_norm(module: nn.Module) -> bool:
    """Tell a norm by the name of its class."""
    return "norm" in type(module).__name__.lower()


def unknown(model: nn.Module, met: str) -> TrainingError:
    """Return the error for a model whose inside cannot be told."""
    return TrainingError(
        f"looking into {type(model).__name__}: met {met}; a method that works inside the layers "
        "cannot train this architecture, choose one that does not"
    )


def movable(model: PreTrainedModel, training: Training) -> frozenset[str]:
    """Return the names of the weights that a training may move, or put an adapter on.

    Args:
        model: Without adapters. Weights that two modules share go by one name, and are an embedding's
            if one of the two is.
        training: Whose `trainable` and `last_layers` say which.

    Raises:
        ConfigError: when the model has fewer blocks.
        TrainingError: when its blocks or their parts cannot be told.
    """
    named = {id(p): name for name, p in model.named_parameters()}

    def of(modules: Iterable[nn.Module]) -> set[str]:
        return {named[id(p)] for module in modules for p in module.parameters()}

    names = set(named.values())
    if training.trainable == "no-embeddings":
        names -= of(module for module in model.modules() if isinstance(module, nn.Embedding))
    elif training.trainable != "all":
        parts = [part for block in stack(model)[1] for part in block.children()]
        attention = [part for part in parts if is_attention(part)]
        mlp = [part for part in parts if not (is_attention(part) or is_norm(part))]
        names = of(attention if training.trainable == "attention" else mlp)
        if not names:
            raise unknown(model, f"blocks without a part to call {training.trainable}")
    if training.last_layers is not None:
        blocks = stack(model)[1]
        if training.last_layers > len(blocks):
            raise ConfigError(
                f"choosing what to train: `last_layers` is {training.last_layers}, and the model has "
                f"{len(blocks)} layers; give at most as many, or leave it out"
            )
        names &= of(blocks[-training.last_layers :])
    return frozenset(names)


def scope_words(training: Training) -> str:
    """Return what is trained as reports show it: `full`, or e.g. `lora, attention, last 2 layers`."""
    words = ["full" if training.lora is None else "lora"]
    if training.trainable != "all":
        words.append(training.trainable)
    if training.last_layers is not None:
        words.append(f"last {training.last_layers} layers")
    return ", ".join(words)
