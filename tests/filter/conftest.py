"""The filter reads what the report reads: its tests share the rows of tests/report."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "report"))
