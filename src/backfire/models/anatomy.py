"""Where the parts of a decoder are, told by what they are instead of by what they are called.

Blocks are the largest list of modules. In a block the attention is the child of that class, and the
feed-forward part is, or ends in, the last child with weights that is neither attention nor norm (OPT has
no module around its two linear layers). Adapters and sharding leave this as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.errors import TrainingError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["attentions", "blocks", "mlps"]


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the model's blocks, in order.

    Raises:
        TrainingError: when there are none.
    """
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise TrainingError(
            f"{_looking(model)}: it has no list of blocks; use another defense for it"
        )
    return list(max(lists, key=_num_weights))


def attentions(model: nn.Module) -> list[nn.Module]:
    """Return the attention module of each block, whose output is added to the residual stream.

    Raises:
        TrainingError: when a block has none, or several.
    """
    found = [
        [child for child in block.children() if _is_attention(child)] for block in blocks(model)
    ]
    for index, parts in enumerate(found):
        if len(parts) != 1:
            raise TrainingError(
                f"{_looking(model)}: block {index} has {len(parts)} attention modules, not one; use a "
                "defense that does not work on attention outputs"
            )
    return [part for (part,) in found]


def mlps(model: nn.Module) -> list[nn.Module]:
    """Return the module of each block whose output is that of its feed-forward part.

    Raises:
        TrainingError: when a block has none.
    """
    found = []
    for index, block in enumerate(blocks(model)):
        parts = [
            child
            for child in block.children()
            if _num_weights(child) and not _is_attention(child) and not _is_norm(child)
        ]
        if not parts:
            raise TrainingError(
                f"{_looking(model)}: block {index} has no feed-forward part; use a defense that does not "
                "work on its output"
            )
        found.append(parts[-1])
    return found


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return ("attention" in name or "attn" in name) and not _is_norm(module)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _looking(model: nn.Module) -> str:
    return f"looking for the parts of {type(model).__name__}"
