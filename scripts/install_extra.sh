#!/usr/bin/env bash
# install_extra.sh EXTRA[,EXTRA]: what extras of this package need, into .venv. scripts/setup.sh makes it, and
# calls this for the extra `dev`.
set -euo pipefail
cd "$(dirname "$0")/.."

pip() { .venv/bin/python -m pip --disable-pip-version-check install -q "$@"; }
pip --no-build-isolation -e ".[$1]"
# Without a GPU: torch's CUDA build insists on Triton 3.7, whose interpreter cannot run the kernels.
if [ -s .venv/triton ]; then pip --no-deps "triton==$(cat .venv/triton)"; fi
