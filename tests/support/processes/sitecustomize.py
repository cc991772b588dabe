"""Garbage collection in the processes that tests start. Python imports this first in each of them (tests/conftest.py).

Importing vLLM makes 800,000 objects that live as long as the process. Python goes through them again and again meanwhile, for
1.8 of 10 s, and an engine's start collects ten times, 0.35 s each. Here they are looked through seldom, and once.
"""

import atexit
import gc
import os
from functools import wraps

gc.set_threshold(50_000, 20, 100)

if "PYTEST_CURRENT_TEST" in os.environ:  # pytest's own processes are older; tests/conftest.py has what holds there
    collect = gc.collect

    @wraps(collect)
    def collect_once(generation: int = 2) -> int:
        """Collect, and leave out what has been seen to live the next time; until `gc.unfreeze`, which ends an engine."""
        found = collect(generation)
        gc.freeze()
        return found

    gc.collect = collect_once
    atexit.register(gc.unfreeze)  # as in tests/conftest.py
