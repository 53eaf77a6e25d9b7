"""Follows every link inside a built site: files, pages, and places on a page.

python scripts/check_site.py site
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places on it that links may lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def broken(site: Path) -> list[str]:
    """`PAGE: LINK` for each link inside the site that leads nowhere."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]  # of the theme
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in found}
    bad = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            known = pages[target].places if target in pages else {place}
            if not target.exists() or (place and place not in known):
                bad.append(f"{path.relative_to(site)}: {link}")
    return bad


def main(arguments: Sequence[str] | None = None) -> int:
    (folder,) = sys.argv[1:] if arguments is None else arguments
    site = Path(folder).resolve()
    found = broken(site)
    print("\n".join(found) or f"{site}: all links inside lead somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
