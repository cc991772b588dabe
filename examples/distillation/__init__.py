"""Does data drawn from q* teach better? The experiment behind examples/distillation/README.md, by the rule of PROTOCOL.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
PAIR = HERE.parent / "pair"
RESULTS = HERE / "results"

sys.path += [str(PAIR), str(HERE.parents[1] / "benchmarks")]  # `task`, `measure` and `soundness`; `recording`
