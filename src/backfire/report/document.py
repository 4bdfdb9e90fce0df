"""How a page is put together: templates, one style and script for all, a policy that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from markupsafe import Markup

from backfire.report.markup import FILTERS
from backfire.report.palette import css
from backfire.report.untrusted import finalized, markdown_cell

__all__ = ["dressed", "render"]


def dressed() -> dict[str, Markup]:
    """Return what every page's head needs: `style`, `script`, and the `policy` that allows only these."""
    script, style = _template("card.js"), css() + _template("card.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "script": script, "style": style}
    return {name: Markup(text) for name, text in parts.items()}  # noqa: S704 - ours, unquoted


def render(name: str, **values: Any) -> str:
    """Return a template of this package, filled in; all text is escaped in HTML and inert anywhere."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        finalize=finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {**FILTERS, "cell": markdown_cell}
    return environment.get_template(name).render(**values)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _template(name: str) -> str:
    return (
        resources.files("backfire.report").joinpath("templates", name).read_text(encoding="utf-8")
    )
