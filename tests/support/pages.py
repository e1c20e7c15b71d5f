"""Read a report page as its reader sees it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br", "link", "hr"}


@dataclass
class Page(HTMLParser):
    """A page as read: its text, and what it refers to; tags that do not match are an AssertionError."""

    title: str = ""
    text: str = ""
    images: int = 0
    tables: list = field(default_factory=list)
    stack: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data", "action"):
            assert values.get(name, "#").startswith(("#", "data:")), values[name]
        if tag == "img":
            kind, _, content = values["src"].partition(";base64,")
            assert kind in ("data:image/png", "data:image/svg+xml") and values["alt"]
            assert base64.b64decode(content, validate=True).startswith((b"\x89PNG", b"<?xml")) and len(content) > 2000
            self.images += 1
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.stack and self.stack[-1] == "title":
            self.title += data
        if "td" in self.stack or "th" in self.stack:
            self.tables[-1][-1][-1] += data


def read_page(path: Path) -> Page:
    """Read a page, which must be well-formed and refer to nothing outside."""
    source, page = path.read_text(encoding="utf-8"), Page()
    page.feed(source)
    page.close()
    assert not page.stack
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//|file:)|url\(|@import", source)
    return page
