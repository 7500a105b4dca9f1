"""How a page is put together so that no name or log line can break out of it: text is escaped unless it is markup already."""

from __future__ import annotations

import re
from html import escape
from typing import TypeAlias

# What XML and HTML know no character for, lone surrogates, and the marks that turn the direction of text.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Markup(str):
    """Text that is markup: made here only, from parts that were escaped."""

    __slots__ = ()


Content: TypeAlias = "str | int | float | None"


def text(value: Content) -> Markup:
    """Any value as text of a page; markup stays as it is."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    return Markup(escape(_FORBIDDEN.sub("\ufffd", f"{value:g}" if isinstance(value, float) else str(value))))


def join(*parts: Content) -> Markup:
    return Markup("".join(map(text, parts)))


def tag(name: str, /, *children: Content, **attributes: Content) -> Markup:
    """An element; `class_` and `stroke_width` become class and stroke-width, and what is None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not children and name in ("path", "line", "rect", "circle", "br", "meta", "col", "use"):
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def _short(value: Content) -> Content:
    """Coordinates to a tenth: finer is not to be seen, and doubles the page."""
    return number(value) if isinstance(value, float) else value


def number(value: float) -> str:
    """A coordinate, in as few characters as say it."""
    return f"{value:.1f}".removesuffix(".0")
