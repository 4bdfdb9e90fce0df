"""Drawings as text: the same bytes every time, and a form that lives inside the page.

A figure is written twice from one drawing: as a file of its own, and inline, where its colors follow
the page's light or dark scheme, its ids are its own, and nothing needs a style attribute (the page's
content-security policy forbids them).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from backfire.report.palette import GRID, INK, MUTED, PAPER, variables
from backfire.report.untrusted import inert

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "drawing"]


@dataclass(frozen=True)
class Picture:
    """One figure: what it shows, how it is read, and its drawing."""

    name: str
    """File name without suffix; also the prefix of its ids in the page."""
    title: str
    caption: str
    """How to read it, with n."""
    alt: str
    """What a reader who cannot see it should know."""
    svg: str
    """The drawing as a file of its own."""
    tips: Mapping[str, str]
    """Tooltip by element id."""

    def inline(self) -> Markup:
        """Return the drawing for the page."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r'style="([^"]*)"', _attributes, text)
        text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'xlink:href="#', f'href="#{self.name}-', text)
        text = re.sub(r"url\(#", f"url(#{self.name}-", text)
        for key, tip in self.tips.items():
            mark = f'<g id="{self.name}-{key}">'
            text = text.replace(mark, f"{mark}<title>{escape(inert(tip))}</title>", 1)
        box = re.search(r'viewBox="[^"]*"', text)
        head = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(inert(self.alt))}">'
        return Markup(head + text[text.index(">") + 1 :])  # noqa: S704 - matplotlib escapes its text


_COLORS = variables()


def _attributes(style: re.Match[str]) -> str:
    """Turn one style attribute into presentation attributes, colors into variables of the page."""
    parts = []
    for item in style[1].split(";"):
        name, _, value = item.partition(":")
        name, value = name.strip(), value.strip()
        if name and name != "font-family":  # the page's own font takes its place
            parts.append(f'{name}="{_COLORS.get(value, value)}"')
    return " ".join(parts)


class Canvas:
    """A figure being drawn, and the tooltips of its parts."""

    def __init__(self, name: str, figure: Figure) -> None:
        """Start with no tooltips."""
        self.name = name
        self.figure = figure
        self.tips: dict[str, str] = {}

    def tip(self, text: str) -> str:
        """Return a new element id (`gid`) whose tooltip is `text`."""
        key = f"tip{len(self.tips)}"
        self.tips[key] = text
        return key

    def picture(self, title: str, caption: str, alt: str) -> Picture:
        """Return the finished picture."""
        buffer = io.StringIO()
        self.figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
        return Picture(self.name, title, caption, alt, buffer.getvalue(), self.tips)


@contextmanager
def drawing(name: str, width: float, height: float) -> Iterator[Canvas]:
    """Give a canvas of `width` x `height` inches with the card's looks; draw and save inside.

    The bytes depend on what is drawn alone: ids come from `name`, there is no date, text stays text.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    looks = {
        "svg.hashsalt": f"backfire-{name}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "text.color": INK.light,
        "axes.labelcolor": MUTED.light,
        "axes.edgecolor": MUTED.light,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.axisbelow": True,
        "axes.grid": False,
        "axes.facecolor": "none",
        "axes.labelsize": 8.5,
        "grid.color": GRID.light,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED.light,
        "ytick.color": MUTED.light,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "figure.facecolor": PAPER.light,
        "savefig.facecolor": PAPER.light,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
    }
    # The user's own matplotlibrc must not show in the bytes.
    with matplotlib.style.context(["default", looks]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield Canvas(name, figure)
