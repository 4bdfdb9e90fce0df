"""The defense card: a run folder in, one self-contained page out; no torch.

>>> from backfire.report import build
"""

from __future__ import annotations

from backfire.report.card import build

__all__ = ["build"]
