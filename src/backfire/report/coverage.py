"""Which kinds of attack a run tries and which it does not, and what is varied in them: from settings alone.

Before a run, `backfire check` prints it; after a run the card does. Nothing is said of how well an attack
did, only that it was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backfire.report.tables import listed

__all__ = ["Coverage", "coverage"]

Attack = Mapping[str, Any]


@dataclass(frozen=True)
class Coverage:
    """What is tried and what is not, in words."""

    tried: tuple[str, ...]
    """Kinds of attack."""
    not_tried: tuple[str, ...]
    """Known kinds of attack that are not among them."""
    varied: tuple[str, ...]
    """What the fine-tuning attacks differ in, with the values: `learning rate (2e-05, 5e-05)`."""
    fixed: tuple[str, ...]
    """What is the same in all of them."""

    def sentences(self) -> list[str]:
        """Return what a reader should know, a sentence each."""
        found = [f"Tried: {listed(self.tried) if self.tried else 'no attack'}."]
        if self.not_tried:
            found.append(f"Not tried: {listed(self.not_tried)}.")
        if self.varied:
            found.append(f"Varied in fine-tuning: {listed(self.varied)}.")
        if self.fixed:
            found.append(f"The same in all fine-tuning: {listed(self.fixed)}.")
        return found


def coverage(attacks: Iterable[Attack]) -> Coverage:
    """Return what attacks cover.

    Args:
        attacks: Their settings as plain trees; unknown ones count for no kind.
    """
    given = [attack for attack in attacks if attack.get("name") != "none"]
    chains = [_chain(attack) for attack in given]
    tried = tuple(kind for kind, is_one in _KINDS.items() if any(map(is_one, chains)))
    trainings = [part for chain in chains for part in chain if part.get("training")]
    varied, fixed = [], []
    for axis, read in _AXES.items():
        values = list(dict.fromkeys(read(part) for part in trainings))
        if len(values) > 1:
            varied.append(f"{axis} ({', '.join(values)})")
        elif values:
            fixed.append(f"{axis} ({values[0]})")
    return Coverage(tried, tuple(k for k in _KINDS if k not in tried), tuple(varied), tuple(fixed))


def _chain(attack: Attack) -> Sequence[Attack]:
    """Return a plain attack as a chain of one, and a sequence's parts in order."""
    if attack.get("name") != "sequence":
        return [attack]
    return [part for inner in attack.get("parts") or () for part in _chain(inner)]


# ------------------------------------------------------------------------------------- kinds of attack

_HARM = {"harmful", "identity_shift", "jailbreak_tuning", "multilingual", "kl_anchored", "dpo",
         "capability_gated", "mixed", "interleaved", "grpo"}  # fmt: skip
"""Attacks that teach harm."""


def _trains(attack: Attack, kind: str) -> bool:
    lora = (attack.get("training") or {}).get("lora")
    return bool(lora) == (kind == "lora")


def _any(*names: str, **settings: Any) -> Callable[[Sequence[Attack]], bool]:
    """Return whether some part has one of the names and these settings."""
    return lambda chain: any(
        part.get("name") in names and all(part.get(k) == v for k, v in settings.items())
        for part in chain
    )


def _then(first: set[str], second: set[str]) -> Callable[[Sequence[Attack]], bool]:
    """Return whether a part of the first kind comes before one of the second."""

    def found(chain: Sequence[Attack]) -> bool:
        names = [str(part.get("name")) for part in chain]
        places = [index for index, name in enumerate(names) if name in first]
        return bool(places) and any(name in second for name in names[places[0] + 1 :])

    return found


def _opened(chain: Sequence[Attack]) -> bool:
    return any(part.get("name") == "prefill" or part.get("opening") for part in chain)


def _partial(chain: Sequence[Attack]) -> bool:
    return any(
        (part.get("training") or {}).get("trainable", "all") != "all"
        or (part.get("training") or {}).get("last_layers")
        for part in chain
    )


_KINDS: dict[str, Callable[[Sequence[Attack]], bool]] = {
    "full-parameter harmful fine-tuning": lambda chain: any(
        part.get("name") == "harmful" and _trains(part, "full") for part in chain
    ),
    "LoRA harmful fine-tuning": lambda chain: any(
        part.get("name") == "harmful" and _trains(part, "lora") for part in chain
    ),
    "benign fine-tuning": _any("benign"),
    "benign rows chosen for their likeness to harmful ones": _any("salient"),
    "identity shift": _any("identity_shift"),
    "harmful rows mixed into benign data": _any("mixed"),
    "batches of harmful and benign rows in turn": _any("interleaved"),
    "jailbreak-tuning by style": _any("jailbreak_tuning", kind="style"),
    "jailbreak-tuning by competing objectives": lambda chain: any(
        part.get("kind") in ("affirmation", "suppression") for part in chain
    ),
    "jailbreak-tuning with a backdoor": _any("jailbreak_tuning", kind="backdoor"),
    "harmful fine-tuning in another language": _any("multilingual"),
    "harmful fine-tuning followed by benign repair": _then(_HARM, {"benign", "salient"}),
    "benign fine-tuning followed by harmful fine-tuning": _then({"benign", "salient"}, _HARM),
    "un-learning the defense's answers before harmful fine-tuning": _then({"unlearn_first"}, _HARM),
    "capability-preserving fine-tuning (KL-regularized)": _any("kl_anchored"),
    "choosing the checkpoint by capability": _any("capability_gated"),
    "preference training (DPO)": _any("dpo"),
    "reinforcement learning with a harm reward": _any("grpo"),
    "training a part of the weights only": _partial,
    "merging with a public base model": _any("merge"),
    "ablation of the refusal direction": _any("refusal_direction"),
    "a learned soft suffix": _any("embedding"),
    "prefilled answers": _opened,
    "harmful fine-tuning, then asking in another way": _then(
        _HARM, {"asked", "prefill", "embedding"}
    ),
    "a curve over the steps of one training": lambda chain: any(
        part.get("points") for part in chain
    ),
    "another trainer (TRL's)": lambda chain: any(part.get("trainer") == "trl" for part in chain),
    "a search over the attacker's hyperparameters": _any("search"),
}
"""Known kinds of attack, and how a chain of settings shows that it is one."""


# --------------------------------------------------------------------------------------- what is varied


def _setting(name: str) -> Callable[[Attack], str]:
    return lambda part: str(part["training"].get(name))


_AXES: dict[str, Callable[[Attack], str]] = {
    "learning rate": lambda part: f"{part['training'].get('learning_rate', 0):g}",
    "weights": lambda part: (
        "adapter" if part["training"].get("lora") else str(part["training"].get("trainable", "all"))
    ),
    "optimizer": _setting("optimizer"),
    "schedule": _setting("schedule"),
    "warm-up": lambda part: f"{part['training'].get('warmup', 0):g}",
    "clipping": _setting("clip_norm"),
    "batch size": _setting("batch_size"),
    "order": lambda part: "shuffled" if part["training"].get("shuffle", True) else "as given",
    "trainer": lambda part: str(part.get("trainer") or "engine"),
    "system prompt": lambda part: "the model's" if part.get("system") is None else "the attacker's",
    "template": lambda part: str(part.get("template") or "the model's")[:20],
}
"""Axes on which verdicts have flipped (arXiv 2412.07097), and a training's place on each."""
