"""Docs are run with the server and the models of tests/server."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "server"))
