"""Does the decision find what is there, and nothing else? The whole analysis on simulated draws with known effects.

    python examples/distillation/simulation.py       writes results/simulation.json, which the page shows

In a simulated draw a source's accuracy on each set is a base, the source's effect, what the draw does to all sources, what
it does to this source alone, and the chance of 1,000 problems. That chance is drawn for each source by itself here, while
the real sources share their problems: real differences have less of that noise.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from distillation import RESULTS  # first: it finds the modules that follow

# isort: split
import recording

from distillation.decision import Values, decide, difference, primary_values
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, EPOCHS, RIVALS, SETS, SOURCES, Sizes

DEVIATIONS = (2.4, 3.5, 4.5, 5.3)
"""Of a difference of two sources over draws, in points: the range that an audit of the first round gave."""
COMMON_DEVIATION = 4.0
"""Of what a draw does to all sources alike, in points; it cancels in a difference."""
BASES = {"stories": 78.0, "longer": 35.0, "sorting": 60.0}
EFFECT = 3.0
EXPERIMENTS = 1000
WORST = -6.0
"""The effect of the controls where q* is to be better than each of them."""


def simulated(effects: Mapping[str, float], deviation: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The draws of one experiment, in the form of the results' files.

    Args:
        effects: in points, by source; 0 where none is given.
        deviation: of the difference of two sources over draws, in points.
    """
    shape = (DRAWS, len(SOURCES), len(EPOCHS), len(SETS))
    problems = Sizes().held_out
    effect = np.array([effects.get(name, 0.0) for name in SOURCES])[None, :, None, None]
    common = rng.normal(0, COMMON_DEVIATION, (DRAWS, 1, 1, 1))
    own = rng.normal(0, deviation / math.sqrt(2), (DRAWS, len(SOURCES), 1, 1))
    share = (np.array([BASES[name] for name in SETS]) + effect + common + own) / 100
    counts = rng.binomial(problems, np.broadcast_to(share.clip(0.0, 1.0), shape))
    return [
        {
            "students": {
                name: {
                    str(epochs): {
                        "sets": {
                            held_out: {"problems": problems, "greedy": {"right": int(counts[draw, i, j, k])}}
                            for k, held_out in enumerate(SETS)
                        }
                    }
                    for j, epochs in enumerate(EPOCHS)
                }
                for i, name in enumerate(SOURCES)
            }
        }
        for draw in range(DRAWS)
    ]


def rates(effects: Mapping[str, float], deviation: float, experiments: int, seed: int) -> dict[str, float]:
    """Of many experiments, the shares in which the decision said what."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("entropy_passes", "any_other_passes", "teaches_better", "covered"), 0)
    for _ in range(experiments):
        values: Values = primary_values(simulated(effects, deviation, rng))
        found = decide(values)
        interval = difference(values, "entropy", DEFAULT)
        counts["entropy_passes"] += "entropy" in found.passing
        counts["any_other_passes"] += bool(found.passing - {"entropy"})
        counts["teaches_better"] += found.teaches_better
        counts["covered"] += interval.low <= effects.get("entropy", 0.0) <= interval.high
    return {name: count / experiments for name, count in counts.items()}


def scenarios() -> dict[str, dict[str, float]]:
    """The effects, in points, by what the page calls them."""
    worse = dict.fromkeys(CONTROLS, WORST)
    return {
        "no source differs": {},
        "entropy is 3 points better": {"entropy": EFFECT},
        "all three are 3 points better": dict.fromkeys(RIVALS, EFFECT),
        "q* is as good as the best control": worse | {"teacher": 0.0},
        "q* is 3 points better than each control": dict.fromkeys(CONTROLS, -EFFECT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    parser.add_argument("--output", type=Path, default=RESULTS / "simulation.json")
    given = parser.parse_args()
    found = {
        name: {
            f"{deviation:g}": rates(effects, deviation, given.experiments, seed=100 * i + j)
            for j, deviation in enumerate(DEVIATIONS)
        }
        for i, (name, effects) in enumerate(scenarios().items())
    }
    header = recording.header("distillation")
    recording.write(given.output, header | {"experiments": given.experiments, "draws": DRAWS, "scenarios": found})


if __name__ == "__main__":
    main()
