#!/usr/bin/env bash
# install_extra.sh EXTRA[,EXTRA]: what extras of this package need, into .venv. scripts/setup.sh has made it.
set -euo pipefail
cd "$(dirname "$0")/.."

pip() { .venv/bin/python -m pip --disable-pip-version-check install -q "$@"; }
pip --no-build-isolation -e ".[$1]"
# pip has brought back what torch's CUDA build insists on.
if [ -s .venv/triton ]; then pip --no-deps "triton==$(cat .venv/triton)"; fi
