"""Rows on which the models disagree, by the hundred thousand, against float64: a job that can be resumed.

Every batch draws rows of one family (`tests/kernels/disagreement.py`), one vocabulary and one method that solves for alpha, as
many as Triton's interpreter holds in one program. A row is right if the total variation from q* is at most 1e-4, the two
divergences of KL symmetry differ by at most 1e-3 nats (or what one ulp of alpha moves) and a KL budget is met as closely,
never exceeded by its record, the row is normalised, the record right, and nothing flagged that could be mixed.

    python tests/reliability/alpha_rows.py       # 500,000 rows; state and result: results/alpha_rows.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

import torch
from disagreement import FAMILIES, SOLVING, Draw, judge, one_program, some_budget
from record import Record

VOCABULARIES = (8, 16, 64, 256, 997, 4096)
KINDS = ("total_variation", "kl_gap", "normalised", "kl", "flags")
RESULT = Path(__file__).parent / "results" / "alpha_rows.json"


def run_batch(number: int, seed: int, families: dict[str, Any], wrong: list[dict[str, Any]]) -> int:
    """Judge one batch, a pure function of its number and the seed, and return its rows; findings are added to the last two."""
    draw = Draw(seed * 1_000_003 + number)
    name = list(FAMILIES)[number % len(FAMILIES)]
    vocab = VOCABULARIES[int(draw.integers(len(VOCABULARIES), 1))]
    # Two fifths of the rows are those of the default.
    method = SOLVING[max(0, int(draw.integers(1 + len(SOLVING), 1)) - 1)]
    shape = one_program(vocab)
    teacher, theta = FAMILIES[name](draw, shape.rows, vocab)
    settings = some_budget(draw, method)
    verdict = judge(teacher, theta, method, shape=shape, **settings)
    entry = families.setdefault(name, {"rows": 0, "wrong": 0, "worst": dict.fromkeys(KINDS, 0.0)})
    worst = verdict.worst()
    entry["rows"] += shape.rows
    entry["wrong"] += int((worst > 1).sum())
    for kind in KINDS:
        entry["worst"][kind] = max(entry["worst"][kind], float(f"{getattr(verdict, kind).max().item():.3g}"))
    wrong.extend(
        {
            "family": name,
            "vocab": vocab,
            "method": method.name,
            **settings,
            "batch": number,
            "row": row,
            "off": worst[row].item(),
        }
        for row in torch.nonzero(worst > 1)[:5, 0].tolist()
    )
    return shape.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(options.result, options.fresh)
    data = record.data
    if data.get("seed") != options.seed:
        data.clear()
    data.setdefault("seed", options.seed)
    data.setdefault("batches", 0)
    data.setdefault("rows", 0)
    data.setdefault("wrong", [])
    data.setdefault("families", {})
    data.setdefault("seconds", 0.0)
    saved = time.monotonic()
    while data["rows"] < options.rows:
        data["rows"] += run_batch(data["batches"], options.seed, data["families"], data["wrong"])
        data["batches"] += 1
        if time.monotonic() - saved > 20 or data["rows"] >= options.rows:
            data["seconds"] += time.monotonic() - saved
            saved = time.monotonic()
            record.save()
    lines = [f"{data['rows']:,} rows, {sum(entry['wrong'] for entry in data['families'].values())} wrong"]
    lines += [
        f"{name:12} {entry['rows']:7,} rows, worst as part of what is allowed: {entry['worst']}"
        for name, entry in data["families"].items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if data["wrong"]:
        sys.exit(f"wrong rows: {data['wrong'][:20]}")


if __name__ == "__main__":
    main()
