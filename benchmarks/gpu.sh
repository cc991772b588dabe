#!/usr/bin/env bash
# What only a GPU shows, in two calls of at most 8 minutes each, on a machine without internet.
#
#   benchmarks/gpu.sh 1     are kernels and rows right there, with CUDA graphs; the kernel's times; Qwen2.5 3B with 1.5B; 3B as
#                           its own theta, and with 1.5B as a theta that scores
#   benchmarks/gpu.sh 2     are rows right without CUDA graphs, and in engines that few tests share; 7B with 0.5B, and as its own
#                           theta; the example pair, also as its own theta; 3B with 1.5B by drafts and batch, beside vLLM's
#                           own draft model; the sanitizer
#   SMALL=1 benchmarks/gpu.sh 1|2     tiny shapes, on a CPU too: shows that every part runs, and measures nothing
#
# Engines start side by side, and the checks run meanwhile; then the machine is quiet, and the kernel and each program's
# engines are timed one after the other; what is last starts when the others are gone, and is left out where too little time
# is left. A part that fails says so, and the others go on. Results and logs are written as it goes, to RESULTS
# (benchmarks/results) and STATE (build/gpu): what an interruption leaves behind can be read.
#
# vLLM, torch, transformers, pytest and hypothesis must be importable by $PYTHON (python3); the package is installed in place,
# without its requirements, if it is not. LIMIT (470) seconds in all. Weights, caches, graphs and checks of a call take some
# 70 GiB together, and 125 in the second; on a card of less than 100 GiB smaller batches are run, and fewer engines at a time,
# in 70 at most.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

CALL=${1:-}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-470}
START_LIMIT=${START_LIMIT:-250} # engines that are not up by then, and checks that are not done, are given up
SMALL=${SMALL:-}
if [ -n "$SMALL" ]; then
  STATE=${STATE:-build/gpu-small} RESULTS=${RESULTS:-$STATE/results} # measures nothing worth keeping
else
  STATE=${STATE:-build/gpu} RESULTS=${RESULTS:-benchmarks/results}
fi

stop() { echo "gpu.sh: $*" >&2; exit 1; }
say() { echo "[$SECONDS s] $*"; }
left() { echo $((LIMIT - SECONDS > 1 ? LIMIT - SECONDS : 1)); }

case $CALL in 1 | 2) ;; *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;; esac

# 1. What has to be there. One sentence for what is not.
export VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_USE_FLASHINFER_SAMPLER=0
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 TVM_FFI_DISABLE_TORCH_C_DLPACK=1 VLLM_LOGGING_LEVEL=${VLLM_LOGGING_LEVEL:-INFO}
export PYTHONUNBUFFERED=1
# Some ten processes share the cores, and threads of OpenMP that wait for one another spin: on busy cores two took 40 times as
# long as one for a row of the reference.
[ -n "$SMALL" ] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$PYTHON" -c 'import vllm' 2> /dev/null || stop "$PYTHON cannot import vllm; put it on PYTHONPATH or name another PYTHON."
if ! "$PYTHON" -c 'import vllm_optimal_sampling.kernels' 2> /dev/null; then
  "$PYTHON" -m pip install -q --no-deps --no-build-isolation --no-index -e . || stop "the package could not be installed."
fi
[ -n "$SMALL" ] || "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  stop "torch sees no GPU; SMALL=1 tries the parts on a CPU."
mkdir -p "$STATE" "$RESULTS"
rm -f "$STATE"/*.gate "$STATE"/*.ready

failed=() left_out=()
declare -A pids
trap 'kill "${pids[@]}" 2> /dev/null' EXIT # nothing outlives an interruption; what has ended is not there to be killed
ended() { # ended NAME CODE: says how a part ended
  if [ "$2" -eq 0 ]; then
    say "$1: done"
  else
    failed+=("$1")
    say "$1: failed with $2; the end of $STATE/$1.log:"
    tail -n 5 "$STATE/$1.log" | cut -c1-300
  fi
}
begin() { # begin NAME COMMAND...: in the background
  local name=$1
  shift
  timeout --kill-after=10 "$(left)" "$@" > "$STATE/$name.log" 2>&1 &
  pids[$name]=$!
}
finish() { # finish NAME: waits for it
  wait "${pids[$1]}"
  local code=$?
  unset "pids[$1]"
  ended "$1" $code
}
engines() { # engines NAME PROGRAM ARGUMENTS...: started now, timed later
  local name=$1 program=$2
  shift 2
  programs+=("$name")
  begin "$name" "$PYTHON" "benchmarks/$program" "$@" --gate "$STATE/$name.gate" --logs "$STATE/$name" --output "$RESULTS/$name.json"
}
late() { # late SECONDS NAME ARGUMENTS...: speed.py, if it is not done, when the other engines have given back their memory
  [[ " ${programs[*]} " != *" $2 "* ]] || return
  [ "$(left)" -ge "$1" ] || { say "$2: $(left) s are left, too few for it"; left_out+=("$2"); return; }
  begin "$2" "$PYTHON" benchmarks/speed.py "${@:3}" --logs "$STATE/$2" --output "$RESULTS/$2.json"
  finish "$2"
}
check() { # check NAME COMMAND...: runs while engines start; what is not done in time is interrupted, and says how far it came
  checks+=("$1")
  begin "$1" timeout --signal=INT --kill-after=10 "$START_LIMIT" "${@:2}"
}

# 2. Engines side by side, and what is checked meanwhile: a process for every few tests, since each compiles kernels first.
programs=()
checks=()
tests="$PYTHON -m pytest -v -p no:cacheprovider --durations=20"
engine_each="scores_in_pieces or changes_no_token or waits_for_the_device" # tests that start engines of their own
inductor=--inductor suffix=-inductor
if [ -n "$SMALL" ]; then
  pairs=("${PAIR:-random-tiny}" "${PAIR:-random-tiny}")
  inductor='' suffix=''
  configurations=2x8 more=2x8 rates=0.9 batches=2 tokens=8 several="teacher optimal:1" problems=2
  own_batches="1 2" own_profile='' several_profile=2 several_seconds=1 own_seconds=1
else
  pairs=(qwen2.5-3b-1.5b qwen2.5-7b-0.5b)
  configurations="8x256 16x512 32x512 16x1024 8x2048" more="8x256 32x512 128x96" rates="0.7 0.8 0.9"
  batches="8 32 128" tokens=96 several="teacher draft_model:4 optimal:1 optimal:2 optimal:4" problems=500
  own_batches="1 8 32 128 256" own_profile="8 128" several_profile=8
  several_seconds=120 own_seconds=90 # what their start and their batches take
  memory=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)')
  [ "$memory" -ge 100 ] || { own_batches="1 8 32 128" more="8x256 32x512"; }
fi
# shellcheck disable=SC2086,SC2206  # lists of words
own=(--pair "${pairs[$((CALL - 1))]}" $inductor --acceptance 0.8 --engines teacher self scored --batches $own_batches
  --max-tokens $tokens --profile $own_profile)
# shellcheck disable=SC2206
by_drafts=(--pair "${pairs[0]}" $inductor --acceptance 0.8 --engines $several --batches $batches --max-tokens $tokens
  --profile $several_profile)
# shellcheck disable=SC2086
if [ "$CALL" = 1 ]; then
  engines "heavy-${pairs[0]}$suffix" heavy_benchmark.py --pair "${pairs[0]}" $inductor --acceptance $rates \
    --configurations $configurations --methods teacher optimal --repeats 1
  if [ -z "$SMALL" ]; then
    engines "speed-${pairs[0]}-self" speed.py "${own[@]}"
    # Compiles what is timed later.
    check kernel-first "$PYTHON" benchmarks/kernel.py --vocabularies 151936 --rows 1 160 640 --seconds 0.001 --peers \
      --output "$STATE/kernel-first.json"
    # Rows of float32, one kind of alignment: another kind is another minute of compiling. Engines have the others.
    check kernel-tests $tests tests/kernels/test_mix.py tests/engine/test_relaxed_top_p.py \
      -k "not (TestAddressing or half_precision or split_rows)" -m "not full"
    check row-tests $tests tests/engine/test_rows.py -m "not full" -k graphs
    check scoring-tests $tests tests/engine/test_scoring.py -m "not full" -k graphs
    check gpu-tests-float $tests tests/engine/test_gpu.py -k "float and not ($engine_each)"
  fi
  check gpu-tests $tests tests/engine/test_gpu.py -k "not float and not ($engine_each)"
else
  if [ -n "$SMALL" ]; then
    engines "speed-${pairs[0]}$suffix" speed.py "${by_drafts[@]}"
  else
    engines "heavy-${pairs[1]}$suffix" heavy_benchmark.py --pair "${pairs[1]}" $inductor --acceptance $rates \
      --configurations $more --methods teacher optimal --repeats 1
    [ "$memory" -lt 100 ] || engines "speed-${pairs[1]}-self" speed.py "${own[@]}"
    check row-tests-eager $tests tests/engine/test_rows.py -m "not full" -k eager
    check scoring-tests-eager $tests tests/engine/test_scoring.py -m "not full" -k eager
    check example-pair-self "$PYTHON" benchmarks/example_pair.py --theta teacher --problems 200 \
      --output "$RESULTS/example-pair-self.json"
    check gpu-tests-async $tests tests/engine/test_gpu.py -k "changes_no_token or waits_for_the_device"
  fi
  check gpu-tests-pieces $tests tests/engine/test_gpu.py -k scores_in_pieces
  check example-pair "$PYTHON" benchmarks/example_pair.py --problems $problems --output "$RESULTS/example-pair.json"
fi
say "started: ${programs[*]}; checks: ${checks[*]}"
for name in "${checks[@]}"; do finish "$name"; done
for name in "${programs[@]}"; do
  until [ -e "$STATE/$name.gate.ready" ] || ! kill -0 "${pids[$name]}" 2> /dev/null; do
    [ $SECONDS -gt "$START_LIMIT" ] && kill "${pids[$name]}" && say "$name: not up after $START_LIMIT s, given up" && break
    sleep 0.5
  done
done
say "engines are up, checks are done: the machine is quiet"

# 3. One thing at a time.
if [ "$CALL" = 1 ]; then
  if [ -n "$SMALL" ] || ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    begin kernel "$PYTHON" benchmarks/kernel.py --check
  else
    begin kernel timeout 100 "$PYTHON" benchmarks/kernel.py --vocabularies 151936 --rows 1 8 40 160 640 1280 --noise 1.0 2.8 \
      --seconds 0.12 --peers batched --output "$RESULTS/kernel.json"
  fi
  finish kernel
fi
for name in "${programs[@]}"; do
  touch "$STATE/$name.gate"
  finish "$name"
done
if [ "$CALL" = 2 ]; then
  late $own_seconds "speed-${pairs[1]}-self" "${own[@]}"
  late $several_seconds "speed-${pairs[0]}$suffix" "${by_drafts[@]}"
fi
if [ "$CALL" = 2 ] && [ -z "$SMALL" ] && [ "$(left)" -gt 45 ] && command -v compute-sanitizer > /dev/null; then
  begin sanitizer timeout "$(($(left) - 10))" compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" benchmarks/kernel.py --check
  finish sanitizer
fi

# 4. What there is now.
"$PYTHON" benchmarks/table.py --results "$RESULTS"
grep -h "Theta .* takes\|Timed at start\|requests: theta's decode\|JIT compil" -r "$STATE" --include='*.log' 2> /dev/null | cut -c1-220 | sort | uniq | head -n 40
say "end"
[ ${#left_out[@]} -eq 0 ] || echo "left out, for want of time: ${left_out[*]}"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
