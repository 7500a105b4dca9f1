"""The page around the pictures: one document whose policy lets it load nothing, in the look of page.css."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from orchestrator.pictures.markup import Content, Markup, join, tag

_FOLDER = files("orchestrator.pictures")
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
"""No style attribute is used, so that the policy can name this one sheet by its hash."""
SCRIPT = (_FOLDER / "page.js").read_text(encoding="utf-8")

DEFS = tag(
    "svg",
    tag(
        "defs",
        *(
            tag(
                "pattern",
                tag("rect", width=8, height=8, fill=f"var(--{color})"),
                tag("path", d=lines, stroke="var(--card)", stroke_width=width, fill="none"),
                id=name,
                width=8,
                height=8,
                patternUnits="userSpaceOnUse",
            )
            for name, color, lines, width in (
                ("save", "checkpoint", "M0 2h8M0 6h8", "1.4"),
                ("start", "starting", "M-1 9L9 -1M-1 1L1 -1M7 9L9 7", "1.6"),
                ("lost", "lost", "M-1 9L9 -1M-1 -1L9 9", "1.2"),
                ("wait", "bg", "M0 8L8 0", "0"),
            )
        ),
    ),
    class_="defs",
    aria_hidden="true",
)


@dataclass(frozen=True)
class Card:
    """One picture or table with its title; `finding` says in a sentence what is to be seen."""

    title: str
    body: Content
    finding: Content = None
    wide: bool = False


def card(one: Card) -> Markup:
    finding = None if one.finding is None else tag("p", one.finding)
    return tag("section", tag("h2", one.title), finding, one.body, class_="wide" if one.wide else None)


def plot(*parts: Content) -> Markup:
    return tag("div", *parts, class_="plot")


def empty(why: str) -> Markup:
    """In place of a picture: why there is none."""
    return tag("p", why, class_="empty")


def tiles(items: Iterable[tuple[str, str, str | None]]) -> Markup:
    """(figure, what it is, what is to be known about it) each."""
    return tag(
        "div",
        *(tag("div", tag("b", value), tag("span", name), title=title) for value, name, title in items),
        class_="tiles",
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[Content]], right: Iterable[int] = ()) -> Markup:
    numbers = set(right)
    kind = ["n" if i in numbers else None for i in range(len(titles))]
    head = tag("tr", *(tag("th", title, class_=k) for title, k in zip(titles, kind, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=k) for cell, k in zip(row, kind, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="table")


def page(title: str, header: Content, cards: Sequence[Content], footer: str) -> str:
    """A whole document. Everything that it needs is in it, and the policy lets it load nothing else."""
    policy = (
        f"default-src 'none'; style-src '{_hash(STYLE)}'; script-src '{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        DEFS,
        tag("header", header),
        tag("main", join(*cards)),
        tag("footer", footer),
        tag("div", "", id="tip"),
        tag("script", Markup(SCRIPT)),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
