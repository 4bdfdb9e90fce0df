"""The card's colors, once: figures draw with the light ones, the page swaps in the dark ones.

Series are Okabe and Ito's palette (distinct in the common forms of color blindness), with a marker
each, so that no reader needs the color alone; the undefended control is always the ink's own gray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GRID", "INK", "MARKERS", "MUTED", "PAPER", "TAXONOMY", "WARM", "Color", "css", "series"]


@dataclass(frozen=True)
class Color:
    """One color by its name in the style sheet, in light and in dark."""

    name: str
    light: str
    """As `#rrggbb`; every light value is used once, so that it can be found again in a drawing."""
    dark: str
    hatch: str = ""
    """Hatching for areas, as matplotlib writes it."""


INK = Color("ink", "#23211f", "#e8e5df")
MUTED = Color("muted", "#66615b", "#a39d94")
GRID = Color("grid", "#dedad3", "#3a3835")
PAPER = Color("paper", "#fdfcfa", "#171717")
WARM = Color("warm", "#fbece6", "#3a211a")

_CONTROL = Color("s0", "#5c5a57", "#b9b4ab")
_SERIES = (
    Color("s1", "#0072b2", "#5cb3e8"),
    Color("s2", "#d55e00", "#ff9147"),
    Color("s3", "#008566", "#3fc9a3"),
    Color("s4", "#b1578c", "#e39ac4"),
    Color("s5", "#9a6b00", "#e6b23e"),
    Color("s6", "#3f3f9e", "#a3a3f0"),
    Color("s7", "#7a3e1d", "#c9936f"),
    Color("s8", "#2a8ba8", "#7cd3ea"),
    Color("s9", "#6d7a00", "#b9c84a"),
)
MARKERS = "osD^vPX<>p*h"

TAXONOMY = {
    "refusal": Color("t-refusal", "#3b6ea5", "#6ea3dc"),
    "irrelevant": Color("t-irrelevant", "#9cc5dd", "#3f7391", "..."),
    "incoherent": Color("t-incoherent", "#c5c1ba", "#6b6762", "xxx"),
    "harmful but useless": Color("t-useless", "#e9b44c", "#c08a24", "///"),
    "harmful and useful": Color("t-useful", "#b3321f", "#f0735d"),
}
"""Answer classes in the order they are stacked, from what a publisher hopes for to what he fears."""

_ALL = (INK, MUTED, GRID, PAPER, WARM, _CONTROL, *_SERIES, *TAXONOMY.values())


def series(defenses: Sequence[str]) -> dict[str, Color]:
    """Return each defense's color; the control `none` is gray, the others in their order."""
    named = [name for name in defenses if name != "none"]
    return {"none": _CONTROL} | {n: _SERIES[i % len(_SERIES)] for i, n in enumerate(named)}


def css() -> str:
    """Return the custom properties of both schemes, as the head of the style sheet."""
    light = "".join(f"--{c.name}:{c.light};" for c in _ALL)
    dark = "".join(f"--{c.name}:{c.dark};" for c in _ALL)
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def variables() -> dict[str, str]:
    """Return the style-sheet variable that stands for each light color."""
    return {c.light: f"var(--{c.name})" for c in _ALL}
