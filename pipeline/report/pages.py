"""What the pages share: templates, numbers as text, scripts and packed tables."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from talkforge.schemas.package_files import package_text


def resource(name: str) -> str:
    """Text of a file of the report's package."""
    return package_text("talkforge.pipeline.report", name)


PLAIN_UNITS = ("fraction", "0..1", "faces", "see ")
"""Units that begin like this say nothing beside a number."""


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this package; what they print is escaped."""
    found = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(resource),
    )
    found.filters |= {
        "span": span,
        "visible": visible,
        "num": number,
        "count": count,
        "unit": unit,
        "rate": rate,
    }
    return found


def page(template: str, scripts: list[str], data: object, **more: Any) -> str:
    """A page that opens without a network and runs its own scripts alone; the same arguments give the same.

    Args:
        template: name of its template, which gets `policy`, `scripts` and `data` beside `more`.
        scripts: names of its scripts, in their order.
        data: what they find in the element `data`, for JSON.
        more: for the template.
    """
    texts = [resource(name) for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
    return (
        environment()
        .get_template(template)
        .render(
            policy=Markup(policy),
            scripts=[Markup(text) for text in texts],
            data=Markup(json.dumps(data, allow_nan=False).replace("<", "\\u003c")),
            **more,
        )
    )


def packed(content: bytes) -> str:
    """Bytes for a page, see `unpack` in common.js."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def span(hours: float | None) -> str:
    """A length of time as people say it."""
    if hours is None or pd.isna(hours):
        return "unknown"
    if hours * 3600 < 99.95:
        return f"{hours * 3600:.1f} s"
    if hours * 60 < 99.95:
        return f"{hours * 60:.1f} min"
    return f"{hours:,.1f} h" if hours < 999.5 else f"{hours:,.0f} h"


def number(value: float | None) -> str:
    """A measured value with four digits that mean something."""
    return "–" if value is None or pd.isna(value) else f"{value:.4g}"


def rate(found: Mapping[str, Any]) -> str:
    """A fraction with its confidence interval, in percent."""
    value = "–" if found["value"] is None else f"{100 * found['value']:.0f} %"
    return f"{value} ({100 * found['low']:.0f} to {100 * found['high']:.0f})"


def count(value: int) -> str:
    """A count with thousands apart."""
    return f"{value:,}"


def unit(name: str) -> str:
    """A unit worth printing after a number, else nothing."""
    return "" if name.startswith(PLAIN_UNITS) else name


def visible(text: object) -> str:
    """Text with every character that would not show (line breaks, direction marks, bad bytes) spelt out."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
