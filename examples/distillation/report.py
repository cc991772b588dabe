"""The page's tables and plots, and what other pages quote, from the files in results/ and nothing else.

python examples/distillation/report.py             prints them
python examples/distillation/report.py --write     puts them between the markers of the pages, and draws the plots
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import HERE, RESULTS
from distillation.findings import Results
from distillation.pages import has_section, with_section
from distillation.sentences import evidence, origin, pilots_say, recommendation, status
from distillation.summary import summary
from distillation.tables import data_table, main_table, rates_table, rivals, simulation_table, students_table

PAGES = (HERE / "README.md", HERE / "TABLES.md")
"""All that they say of results is written here."""
ROOT = HERE.parents[1]
QUOTING = (ROOT / "README.md", ROOT / "docs" / "parameters.md")
"""Pages with a paragraph of it."""


def plots(_: Results) -> str:
    """The two pictures that `plots.draw` leaves beside the results."""
    return "![sound rows against the KL from theta](results/data.png)\n\n![students](results/students.png)"


NEED_DRAWS = {
    "plots": plots,
    "main": main_table,
    "rivals": rivals,
    "data": data_table,
    "greedy": lambda results: students_table(results, "greedy", "right"),
    "sampled": lambda results: students_table(results, "sampled", "right"),
    "sound": lambda results: students_table(results, "greedy", "sound"),
    "origin": origin,
}
NEED_PILOT = {"rates": rates_table, "pilots": pilots_say}
SECTIONS = {
    "status": status,
    "evidence": evidence,
    "recommendation": recommendation,
    **NEED_DRAWS,
    **NEED_PILOT,
    "simulation": simulation_table,
}


def render(results: Results, section: str) -> str:
    """One section as the pages have it."""
    if section in NEED_DRAWS and not results.draws:
        return "No draw is finished."
    if section in NEED_PILOT and results.pilot is None:
        return "The pilot is not finished."
    return SECTIONS[section](results)


def written_into(text: str, results: Results) -> str:
    """A page with each of its marked sections as the results say it.

    Raises:
        ValueError: a marker has no end.

    """
    for name in SECTIONS:
        if has_section(text, name):
            text = with_section(text, name, render(results, name))
    return text


def write(folder: Path = RESULTS) -> None:
    """Put the results into the pages and into summary.json, and draw the plots."""
    from distillation.plots import draw  # needs matplotlib, the tables do not

    results = Results.load(folder)
    (folder / "summary.json").write_text(json.dumps(summary(results.draws), indent=1) + "\n")
    for page in PAGES + QUOTING:
        page.write_text(written_into(page.read_text(), results))
    if results.draws:
        draw(results, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.write:
        write()
        return
    results = Results.load()
    for section in SECTIONS:
        print(f"{section}\n\n{render(results, section)}\n")


if __name__ == "__main__":
    main()
