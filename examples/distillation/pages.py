"""A page's sections between markers, which a report writes from its files."""

from __future__ import annotations

BEGIN = "<!-- {name}: written by report.py -->"
END = "<!-- {name}: end -->"


def has_section(page: str, name: str) -> bool:
    return BEGIN.format(name=name) in page


def with_section(page: str, name: str, content: str) -> str:
    """The page with this between the section's markers.

    Raises:
        ValueError: it has not both markers.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"the page has not both {begin!r} and {end!r} after it; add what is missing")
    return f"{head}{begin}\n{content}\n{end}{tail}"
