"""The experiment is a package in examples/: put that on the path, as running it does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
