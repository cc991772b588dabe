"""The example pair's task: short word problems about counting things, with worked steps in words.

    Mia has 47 apples. She buys 85 more and then sells 23. How many apples does Mia have now?
    Mia starts with 47 apples. Adding 85 to 47 gives 132. Then 132 minus 23 is 109. The answer is 109.

Everything about the task is here: drawing problems, how a problem is put to theta and to the teacher, and how an answer
is read from a generated text and checked. There are three kinds of problem:

- ``story``   one or two changes of a count: what the pair is mostly trained on and measured with,
- ``longer``  three changes: a rare sight in the pair's training, to see what further training on stories carries over,
- ``sorting`` three numbers to be put in order: a second skill of the pair, to see what training makes theta forget.

Problems are split by their numbers alone, whatever their wording: the numbers of a held-out problem never occur in a
training or validation problem of the same kind. Only the standard library is needed.

From the command line, more problems of a split as JSON lines::

    python examples/pair/task.py --split train --count 2000 > train.jsonl
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["story", "longer", "sorting"]
Split = Literal["train", "validation", "heldout"]
Messages = list[dict[str, str]]

NAMES = {
    "Mia": "she", "Anna": "she", "Lena": "she", "Sara": "she", "Ruth": "she", "Nora": "she",
    "Tom": "he", "Ben": "he", "Omar": "he", "Paul": "he", "Ivan": "he", "Karl": "he",
}  # fmt: skip
ITEMS = (
    "apples",
    "stamps",
    "marbles",
    "books",
    "shells",
    "coins",
    "cards",
    "pens",
    "stickers",
    "eggs",
    "tickets",
    "beads",
)

STARTS = (
    "{name} has {n} {item}.",
    "{name} owns {n} {item}.",
    "At first {name} has {n} {item}.",
    "{name} keeps {n} {item} in a box.",
)
GAINS = ("buys {n} more", "finds {n} more", "gets {n} from {friend}", "wins {n} more")
LOSSES = ("sells {n}", "loses {n}", "gives {n} to {friend}", "gives away {n}")
QUESTIONS = (
    "How many {item} does {name} have now?",
    "How many {item} does {name} have in the end?",
    "How many {item} are there now?",
    "What is the number of {item} now?",
)

OPENINGS = (
    "{name} starts with {n} {item}.",
    "We start with {n}.",
    "At first there are {n} {item}.",
    "{name} has {n} at first.",
)
# A change of tens and ones is worked in two halves: {a} and the tens make {m}, {m} and the ones make {c}.
SUMS = (
    ("{a} plus {b} is {c}.", "{a} plus {tens} is {m}, plus {ones} is {c}."),
    ("{a} and {b} make {c}.", "{a} and {tens} make {m}, and {ones} more make {c}."),
    ("adding {b} to {a} gives {c}.", "adding {tens} to {a} gives {m}, adding {ones} gives {c}."),
    ("with {b} more there are {c}.", "with {tens} more there are {m}, with {ones} more {c}."),
)
DIFFERENCES = (
    ("{a} minus {b} is {c}.", "{a} minus {tens} is {m}, minus {ones} is {c}."),
    ("{a} less {b} is {c}.", "{a} less {tens} is {m}, less {ones} is {c}."),
    ("taking {b} from {a} leaves {c}.", "taking {tens} from {a} leaves {m}, taking {ones} leaves {c}."),
    ("without {b} there are {c}.", "without {tens} there are {m}, without {ones} more {c}."),
)
LINKS = ("", "then ", "next ", "now ")
CLOSINGS = ("The answer is {c}.", "So the answer is {c}.", "Then the answer is {c}.")

SORT_QUESTIONS = ("Put {x}, {y} and {z} in order, smallest first.", "Sort {x}, {y} and {z} from small to large.")
SORT_STEPS = (
    "The smallest is {p}, then comes {q}, and {r} is the largest.",
    "First comes {p}, next is {q}, last is {r}.",
    "{r} is the largest and {p} the smallest, so {q} is in between.",
)

CHANGES: dict[Kind, tuple[int, ...]] = {"story": (1, 2, 2, 2), "longer": (3,)}
SMALLEST_CHANGE, LARGEST_CHANGE = 2, 60
SAID_ANSWER = re.compile(r"[Tt]he answer is ([0-9]+(?:, [0-9]+)*)\.")
NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Problem:
    """One problem with one of its worked solutions.

    ``steps`` are the values that a sound solution states in this order (the running totals, or the sorted numbers);
    the answer is the last of them, or all of them for sorting.
    """

    kind: Kind
    problem: str
    answer: str
    steps: tuple[int, ...]
    solution: str

    def row(self) -> dict[str, object]:
        """The problem as it is shipped: what is asked and what is checked, without the solution."""
        return {"problem": self.problem, "answer": self.answer, "steps": list(self.steps), "kind": self.kind}


def theta_messages(problem: str) -> Messages:
    """What theta sees, and the teacher too when it is not privileged: the problem alone."""
    return [{"role": "user", "content": problem}]


def teacher_messages(problem: str, answer: str) -> Messages:
    """What the privileged teacher sees: the problem with its answer."""
    return [{"role": "user", "content": f"{problem}\nAnswer: {answer}."}]


def read_answer(text: str) -> str | None:
    """The answer that a generated text ends with, or None where it states none."""
    found = SAID_ANSWER.findall(text)
    return found[-1] if found and text.rstrip().endswith(found[-1] + ".") else None


def is_right(text: str, answer: str) -> bool:
    """Whether a generated text ends by stating the right answer. Its steps are not looked at: see ``follows``."""
    return read_answer(text) == answer


def follows(text: str, steps: Sequence[int]) -> bool:
    """Whether the values of a sound solution occur in the text in their order, so that the answer was worked out."""
    numbers = iter(NUMBER.findall(text))
    return all(str(step) in numbers for step in steps)


def split_of(numbers: Sequence[int]) -> Split:
    """The split that a problem with these numbers belongs to: a fixed tenth held out, another tenth for validation."""
    part = zlib.crc32(",".join(map(str, numbers)).encode()) % 10
    return "heldout" if part == 0 else "validation" if part == 1 else "train"


def problems(kind: Kind, split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of problems of one kind and split; the same seed gives the same stream."""
    rng = random.Random(f"{kind} {split} {seed}")
    while True:
        numbers = draw_numbers(kind, rng)
        if split_of(numbers) == split:
            yield sorting(numbers, rng) if kind == "sorting" else story(kind, numbers, rng)


def draw_numbers(kind: Kind, rng: random.Random) -> list[int]:
    """The numbers of a problem: three to sort, or a count and its changes, negative ones taken away.

    A count stays between 1 and 99 throughout.
    """
    if kind == "sorting":
        return rng.sample(range(10, 100), 3)
    numbers = [rng.randint(10, 90)]
    for _ in range(rng.choice(CHANGES[kind])):
        total = sum(numbers)
        room = {1: min(LARGEST_CHANGE, 99 - total), -1: min(LARGEST_CHANGE, total - 1)}  # to add, to take away
        sign = rng.choice([sign for sign in room if room[sign] >= SMALLEST_CHANGE])
        numbers.append(sign * rng.randint(SMALLEST_CHANGE, room[sign]))
    return numbers


def story(kind: Kind, numbers: Sequence[int], rng: random.Random) -> Problem:
    """Words around a count and its changes, and around the steps that lead to the last count."""
    name, friend = rng.sample(list(NAMES), 2)
    words = {"name": name, "friend": friend, "item": rng.choice(ITEMS)}
    pronoun = NAMES[name]
    start, *changes = numbers

    events = [rng.choice(GAINS if n > 0 else LOSSES).format(n=abs(n), **words) for n in changes]
    told = f"{pronoun.capitalize()} {events[0]}"
    for event in events[1:]:
        told += rng.choice((f" and then {event}", f". Then {pronoun} {event}"))
    question = rng.choice(QUESTIONS).format(**words)
    problem = f"{rng.choice(STARTS).format(n=start, **words)} {told}. {question}"

    sentences = [rng.choice(OPENINGS).format(n=start, **words)]
    totals = [start]
    for n in changes:
        totals.append(totals[-1] + n)
        ones = abs(n) % 10
        tens = abs(n) - ones
        values = {
            "a": totals[-2],
            "b": abs(n),
            "tens": tens,
            "m": totals[-2] + (tens if n > 0 else -tens),
            "ones": ones,
            "c": totals[-1],
        }
        whole, halves = rng.choice(SUMS if n > 0 else DIFFERENCES)
        sentence = rng.choice(LINKS) + (halves if tens and ones else whole).format(**values)
        sentences.append(sentence[0].upper() + sentence[1:])
    sentences.append(rng.choice(CLOSINGS).format(c=totals[-1]))
    return Problem(kind, problem, str(totals[-1]), tuple(totals[1:]), " ".join(sentences))


def sorting(numbers: Sequence[int], rng: random.Random) -> Problem:
    """Words around three numbers to be put in order."""
    x, y, z = numbers
    p, q, r = sorted(numbers)
    answer = f"{p}, {q}, {r}"
    solution = f"{rng.choice(SORT_STEPS).format(p=p, q=q, r=r)} {rng.choice(CLOSINGS).format(c=answer)}"
    return Problem("sorting", rng.choice(SORT_QUESTIONS).format(x=x, y=y, z=z), answer, (p, q, r), solution)


def distinct(kind: Kind, split: Split, seed: int, count: int) -> list[Problem]:
    """The first problems of a stream, no text twice."""
    found: dict[str, Problem] = {}
    for problem in problems(kind, split, seed):
        found.setdefault(problem.problem, problem)
        if len(found) == count:
            break
    return list(found.values())


def read_rows(path: Path) -> list[dict]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print problems as JSON lines.")
    parser.add_argument("--kind", choices=("story", "longer", "sorting"), default="story")
    parser.add_argument("--split", choices=("train", "validation", "heldout"), default="train")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for problem in distinct(arguments.kind, arguments.split, arguments.seed, arguments.count):
        print(json.dumps(problem.row()))


if __name__ == "__main__":
    main()
