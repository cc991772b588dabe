"""Does data drawn from q* teach better? The experiment behind examples/distillation/README.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PAIR = HERE.parent / "pair"

sys.path += [str(PAIR), str(REPOSITORY / "benchmarks")]  # `task` and `measure`; `recording`
