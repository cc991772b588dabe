"""Whether a generated text is sound: right, with every step right, from the problem's own numbers to the answer.

`task.follows` finds the running totals somewhere in a text. Here the whole text is read, sentence by sentence, in the
wordings that the task has, so that a wrong half step (`67 plus 5 is 71`), a step that is left out or made twice, a count
that the story does not start with, or an answer that does not follow from the last step makes the text unsound.

Of rows that ``optimal-sampling generate`` or ``filter`` wrote over the pair's problems, as chats::

    python examples/pair/soundness.py rows.jsonl best.jsonl
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import measure
import task

PLACE = re.compile(r"\{(\w+)\}")
SENTENCE = re.compile(r"(?<=\.) ")


def pattern(template: str) -> re.Pattern[str]:
    """A wording as a regular expression: its numbers are groups, its name and item any words."""
    parts = PLACE.split(template)
    text = "".join(
        re.escape(part) if place % 2 == 0 else r"[A-Za-z]+" if part in ("name", "item") else f"(?P<{part}>[0-9]+)"
        for place, part in enumerate(parts)
    )
    return re.compile(text)


OPENINGS = [pattern(wording) for wording in task.OPENINGS]
SUMS = [pattern(wording) for pair in task.SUMS for wording in pair]
DIFFERENCES = [pattern(wording) for pair in task.DIFFERENCES for wording in pair]
SORT_STEPS = [pattern(wording) for wording in task.SORT_STEPS]


def read(patterns: Sequence[re.Pattern[str]], sentence: str) -> dict[str, int] | None:
    """The numbers of a sentence by their names in its wording, or None where it has none of these wordings."""
    for one in patterns:
        if found := one.fullmatch(sentence):
            return {name: int(value) for name, value in found.groupdict().items()}
    return None


def is_sound(text: str, row: Mapping) -> bool:
    """Whether a text is a sound solution of a problem.

    Args:
        text: as generated.
        row: of the problem, as `task.Problem.row` gives it.
    """
    if not task.is_right(text, row["answer"]):
        return False
    sentences = SENTENCE.split(text.strip())
    if row["kind"] == "sorting":
        return len(sentences) == 2 and _sorts(sentences[0], row["steps"]) and _says(sentences[1], row["answer"])
    start = int(re.findall("[0-9]+", row["problem"])[0])
    totals = [start, *row["steps"]]
    if len(sentences) != len(totals) + 1:
        return False
    opening, *steps, closing = sentences
    return (
        read(OPENINGS, opening) == {"n": start}
        and all(_leads(step, before, after) for step, before, after in zip(steps, totals, totals[1:], strict=False))
        and _says(closing, row["answer"])
    )


def _leads(sentence: str, before: int, after: int) -> bool:
    """Whether a step goes from one total to the next, by way of right halves if it has two."""
    if sentence[:1].islower():
        return False
    said = sentence[:1].lower() + sentence[1:]
    for link in task.LINKS:
        step = read(SUMS if after > before else DIFFERENCES, said.removeprefix(link)) if said.startswith(link) else None
        if step is not None:
            return _adds_up(step, before, after)
    return False


def _adds_up(step: dict[str, int], before: int, after: int) -> bool:
    # "with 25 more there are 72" does not say what it starts from.
    if step.get("a", before) != before or step["c"] != after:
        return False
    change, sign = abs(after - before), 1 if after > before else -1
    if "b" in step:
        return step["b"] == change
    return step["tens"] + step["ones"] == change and step["m"] == before + sign * step["tens"]


def _says(sentence: str, answer: str) -> bool:
    """Whether a closing sentence states the answer."""
    return any(sentence == wording.format(c=answer) for wording in task.CLOSINGS)


def _sorts(sentence: str, numbers: Sequence[int]) -> bool:
    return read(SORT_STEPS, sentence) == dict(zip("pqr", numbers, strict=True))


def judged(rows: Sequence[Mapping]) -> dict[str, object]:
    """How many of some output rows are right and sound, with 95 % intervals."""
    texts = [row["completion"][0]["content"] for row in rows]
    right = sum(task.is_right(text, row["answer"]) for text, row in zip(texts, rows, strict=True))
    sound = sum(is_sound(text, row) for text, row in zip(texts, rows, strict=True))
    return {
        "rows": len(rows),
        "right": right,
        "right_interval_95": measure.interval(right, len(rows)),
        "sound": sound,
        "sound_interval_95": measure.interval(sound, len(rows)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Count right and sound rows.")
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines that optimal-sampling wrote")
    parser.add_argument("--sample", type=int, help="only rows with this number of the sample")
    arguments = parser.parse_args()
    for path in arguments.files:
        rows = [row for row in task.read_rows(path) if row["error"] is None]
        if arguments.sample is not None:
            rows = [row for row in rows if row["sample"] == arguments.sample]
        print(json.dumps({"file": path.name, **judged(rows)}))


if __name__ == "__main__":
    main()
