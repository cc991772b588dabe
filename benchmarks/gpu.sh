#!/usr/bin/env bash
# All benchmarks that need a GPU, in parts that each end within 8 minutes; needs no internet.
#
#   benchmarks/gpu.sh                  every part that is not done yet, then the table
#   benchmarks/gpu.sh kernel-32000     these parts, done or not
#   benchmarks/gpu.sh --list           the parts
#   BUDGET=540 benchmarks/gpu.sh       starts no part that could end later than so many seconds from now; call it again
#   DRY_RUN=1 benchmarks/gpu.sh        prints the commands
#   SMALL=1 benchmarks/gpu.sh          tiny shapes, on a CPU too: shows that every part runs, and measures nothing
#
# vLLM, torch, transformers and this package must be importable by $PYTHON (python3); the package is installed in place,
# without its requirements, if it is not. Results go to benchmarks/results, logs and marks of what is done to build/gpu.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-0}
LIMIT=${LIMIT:-470}
SMALL=${SMALL:-}
DRY_RUN=${DRY_RUN:-}
if [ -n "$SMALL" ]; then
  STATE=${STATE:-build/gpu-small} RESULTS=${RESULTS:-$STATE/results} # measures nothing worth keeping
else
  STATE=${STATE:-build/gpu} RESULTS=${RESULTS:-benchmarks/results}
fi
mkdir -p "$STATE"

export VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_USE_FLASHINFER_SAMPLER=0
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 TVM_FFI_DISABLE_TORCH_C_DLPACK=1 VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-WARNING}

stop() { echo "gpu.sh: $*" >&2; exit 1; }

# 1. The parts: a name, then a command.
names=()
declare -A commands
part() { names+=("$1"); commands[$1]="${*:2}"; }

bench() { echo "$PYTHON benchmarks/$1"; }
out() { echo "--output $RESULTS/$1.json --logs $STATE/logs-$1"; }

if [ -n "$SMALL" ]; then
  part kernel "$(bench kernel.py) --check"
  pairs=(random-tiny)
  configurations=(2x8)
  rates="0.7 0.9"
  sweep="--repeats 1"
  model="--drafts 0 1 2 --fit 1 2 --batches 1 2 --max-tokens 24"
  eager="--drafts 1 2 --fit 1 2 --batches 1 2 --max-tokens 24"
  growth="--lengths 4 8 --length-batch 2 --batches 1 2 --max-tokens 8 --repeats 1"
  waits="--batch 2 --steps 4"
  peers="2x8"
else
  for vocab in 32000 128256 151936 262144; do
    part "kernel-$vocab" "$(bench kernel.py) --vocabularies $vocab --seconds 0.3 --output $RESULTS/kernel-$vocab.json"
  done
  pairs=(qwen2.5-3b-1.5b qwen2.5-7b-0.5b)
  configurations=(8x256 16x512 32x512 16x1024 8x2048)
  rates="0.6 0.7 0.8 0.9 0.95"
  sweep="--repeats 2"
  model="--drafts 1 4 8 --fit 1 4 --batches 1 8 32 128 --max-tokens 64"
  eager="--drafts 1 4 --fit 1 4 --batches 1 8 32 --max-tokens 64"
  growth="--lengths 64 256 512 1024 2048 4096 --length-batch 8 --batches 1 4 16 64 256 --max-tokens 64 --repeats 2"
  waits="--batch 8 --steps 100"
  peers="8x256"
fi

engines="--methods teacher theta draft_model optimal"
for pair in "${pairs[@]}"; do
  for one in "${configurations[@]}"; do
    repeats=$sweep
    [ "$one" = 8x2048 ] && repeats="--repeats 1" # as many batches as the original published
    part "heavy-$pair-$one" "$(bench heavy_benchmark.py) --pair $pair --acceptance $rates --configurations $one" \
      "$engines $repeats $(out "heavy-$pair-$one")"
  done
  # The slow peers in one configuration, against the same teacher: the original would take minutes for each batch of the others.
  part "heavy-$pair-peers" "$(bench heavy_benchmark.py) --pair $pair --acceptance 0.9 --configurations $peers" \
    "--methods teacher original lockstep --repeats 1 --together 3 $(out "heavy-$pair-peers")"
  part "model-$pair" "$(bench model.py) --pair $pair --acceptance 0.9 $model $(out "model-$pair")"
  part "model-$pair-eager" "$(bench model.py) --pair $pair --acceptance 0.9 --eager $eager $(out "model-$pair-eager")"
  part "growth-$pair" "$(bench growth.py) --pair $pair --acceptance 0.9 $growth $(out "growth-$pair")"
  part "waits-$pair" "$(bench waits.py) --pair $pair --acceptance 0.9 $waits $(out "waits-$pair")"
done
if [ -z "$SMALL" ]; then
  part sanitizer-memcheck "compute-sanitizer --tool memcheck --error-exitcode 9 $PYTHON -m pytest -q -x tests/kernels/test_mix.py"
  part sanitizer-racecheck "compute-sanitizer --tool racecheck --error-exitcode 9 $PYTHON benchmarks/kernel.py --check"
fi

# 2. What was asked.
if [ "${1:-}" = --list ]; then
  for name in "${names[@]}"; do
    [ -e "$STATE/$name.done" ] && echo "$name (done)" || echo "$name"
  done
  exit 0
fi
asked=("$@")
for name in "${asked[@]}"; do
  [ -n "${commands[$name]:-}" ] || stop "there is no part $name; --list names them."
done

if [ -n "$DRY_RUN" ]; then
  for name in "${names[@]}"; do echo "$name: ${commands[$name]}"; done
  exit 0
fi

# 3. What has to be there. One sentence for what is not.
"$PYTHON" -c 'import vllm' 2> /dev/null || stop "$PYTHON cannot import vllm; put it on PYTHONPATH or name another PYTHON."
if ! "$PYTHON" -c 'import vllm_optimal_sampling.kernels' 2> /dev/null; then
  "$PYTHON" -m pip install -q --no-deps --no-build-isolation --no-index -e . || stop "the package could not be installed."
fi
[ -n "$SMALL" ] || "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  stop "torch sees no GPU; SMALL=1 tries the parts on a CPU."

# 4. The parts, one after the other. One that fails does not keep the others from running.
failed=()
left=()
todo=("${asked[@]}")
[ ${#asked[@]} -gt 0 ] || todo=("${names[@]}")
for name in "${todo[@]}"; do
  if [ ${#asked[@]} -eq 0 ] && [ -e "$STATE/$name.done" ]; then continue; fi
  if [ "$BUDGET" -gt 0 ] && [ $((SECONDS + LIMIT)) -gt "$BUDGET" ]; then
    left+=("$name")
    continue
  fi
  case ${commands[$name]} in compute-sanitizer*)
    if ! command -v compute-sanitizer > /dev/null; then
      echo "$name: left out, there is no compute-sanitizer on this machine"
      continue
    fi ;;
  esac
  echo "$name: begins"
  begin=$SECONDS
  # shellcheck disable=SC2086  # a command's words
  timeout --kill-after=10 "$LIMIT" ${commands[$name]} > "$STATE/$name.log" 2>&1
  code=$?
  if [ $code -eq 0 ]; then
    touch "$STATE/$name.done"
    echo "$name: done in $((SECONDS - begin)) s"
  else
    failed+=("$name")
    echo "$name: failed with $code after $((SECONDS - begin)) s; the end of $STATE/$name.log:"
    tail -n 5 "$STATE/$name.log"
  fi
done

# 5. The table, and what is missing from it.
"$PYTHON" benchmarks/table.py --results "$RESULTS"
[ ${#left[@]} -eq 0 ] || echo "not begun for lack of time, call again: ${left[*]}"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
