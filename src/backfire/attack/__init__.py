"""Attacks: checkpoint in, checkpoint out. One file each; a new one is a file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backfire.attack.asked import Asked
from backfire.attack.benign import Benign
from backfire.attack.capability_gated import CapabilityGated
from backfire.attack.dpo import DPO
from backfire.attack.embedding import Embedding
from backfire.attack.grpo import GRPO
from backfire.attack.harmful import Harmful
from backfire.attack.identity_shift import IdentityShift
from backfire.attack.interleaved import Interleaved
from backfire.attack.jailbreak_tuning import JailbreakTuning
from backfire.attack.kl_anchored import KLAnchored
from backfire.attack.merge import Merge
from backfire.attack.mixed import Mixed
from backfire.attack.multilingual import Multilingual
from backfire.attack.none import Unattacked
from backfire.attack.prefill import Prefill
from backfire.attack.refusal_direction import RefusalDirection
from backfire.attack.salient import Salient
from backfire.attack.sequence import AttackSequence
from backfire.attack.unlearn_first import UnlearnFirst
from backfire.stage import member_union

__all__ = [
    "DPO",
    "GRPO",
    "AnyAttack",
    "Asked",
    "AttackSequence",
    "Benign",
    "CapabilityGated",
    "Embedding",
    "Harmful",
    "IdentityShift",
    "Interleaved",
    "JailbreakTuning",
    "KLAnchored",
    "Merge",
    "Mixed",
    "Multilingual",
    "Prefill",
    "RefusalDirection",
    "Salient",
    "Unattacked",
    "UnlearnFirst",
]

if TYPE_CHECKING:
    AnyAttack = (
        Unattacked
        | Harmful
        | Benign
        | Mixed
        | CapabilityGated
        | DPO
        | IdentityShift
        | Interleaved
        | JailbreakTuning
        | KLAnchored
        | Multilingual
        | Salient
        | UnlearnFirst
        | GRPO
        | RefusalDirection
        | Merge
        | Embedding
        | Prefill
        | Asked
        | AttackSequence
    )
else:
    AnyAttack = member_union(
        Unattacked,
        Harmful,
        Benign,
        Mixed,
        CapabilityGated,
        DPO,
        IdentityShift,
        Interleaved,
        JailbreakTuning,
        KLAnchored,
        Multilingual,
        Salient,
        UnlearnFirst,
        GRPO,
        RefusalDirection,
        Merge,
        Embedding,
        Prefill,
        Asked,
        AttackSequence,
        group="backfire.attacks",
    )

# The parts of a sequence are attacks, of which it is one.
AttackSequence.model_rebuild(force=True, _types_namespace={"AnyAttack": AnyAttack})
