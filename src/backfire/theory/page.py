"""The theory's page: one self-contained file with sliders that recompute in the browser.

>>> write_page(Path("theory"))                                           # doctest: +SKIP
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from backfire.report.palette import css
from backfire.report.svg import Picture
from backfire.store import write_text
from backfire.theory.figures import all_figures
from backfire.theory.region import Sampling, share_that_falls

__all__ = ["build_page", "write_page"]

_SHIFTS = (1.0, 0.99, 0.95, 0.9, 0.7)


class _Slider(NamedTuple):
    key: str
    """Name in the script and in the page's address."""
    label: str
    low: float
    high: float
    step: float
    value: float


# The page opens on the counter-example of `backfire.theory.theorems`.
_GROUPS = (
    (
        "World",
        (
            _Slider("p", "p, shift of spurious features", 0, 1, 0.01, 0.95),
            _Slider("classes", "K, classes", 2, 50, 1, 4),
            _Slider("weight", "share of the aligned model", 0, 1, 0.01, 0.5),
        ),
    ),
    (
        "Aligned model",
        (
            _Slider("nv", "invariant, n_v", 0, 60, 1, 10),
            _Slider("ns", "spurious, n_s", 1, 400, 1, 100),
        ),
    ),
    (
        "Near-optimal model of the attacker",
        (
            _Slider("mv", "invariant, n*_v", 0, 60, 1, 9),
            _Slider("ms", "spurious, n*_s", 1, 400, 1, 101),
        ),
    ),
    (
        "Shared by both",
        (
            _Slider("ov", "invariant, n_vo", 0, 60, 1, 0),
            _Slider("os", "spurious, n_so", 0, 400, 1, 0),
        ),
    ),
)


def write_page(folder: Path) -> Path:
    """Write `index.html` and `figures/*.svg` to `folder`; return the page."""
    figures = all_figures()
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", figure.svg)
    page = folder / "index.html"
    write_text(page, build_page(figures))
    return page


def build_page(figures: list[Picture]) -> str:
    """Return the page; nothing in it is loaded from elsewhere, and its policy forbids it."""
    from jinja2 import Environment
    from markupsafe import Markup

    web = files("backfire.theory") / "web"
    style = css() + (web / "page.css").read_text(encoding="utf-8")
    script = "".join(
        (web / name).read_text(encoding="utf-8") for name in ("feature_lab.js", "page.js")
    )
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        (web / "page.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        policy=policy,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        groups=_GROUPS,
        shifts=[f"{p:g}" for p in _SHIFTS],
        shares=_share_rows(),
        figures=figures,
    )


def _share_rows() -> list[tuple[str, list[str]]]:
    names: tuple[tuple[str, Sampling], ...] = (
        ("n*_v, n*_s drawn given n_v, n_s", "conditional"),
        ("uniform over the premise region", "rejection"),
    )
    rows = []
    for name, sampling in names:
        found = share_that_falls(_SHIFTS, sampling, draws=400_000)
        rows.append((name, [f"{100 * share.value:.2g} %" for share in found]))
    return rows


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
