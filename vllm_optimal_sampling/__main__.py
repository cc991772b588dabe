"""`python -m vllm_optimal_sampling`: the command `optimal-sampling`."""

import sys

from vllm_optimal_sampling.cli import main

if __name__ == "__main__":  # vLLM's processes import the main module again
    sys.exit(main())
