#!/usr/bin/env bash
# All benchmarks that mean something without a GPU, then the tables. About an hour on two cores.
#
#   PYTHON=.venv/bin/python benchmarks/cpu.sh              everything
#   PYTHON=.venv/bin/python benchmarks/cpu.sh heavy-pair   these parts
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
parts=("$@")
[ $# -gt 0 ] || parts=(kernel heavy-pair heavy-random model growth updates)

for part in "${parts[@]}"; do
  echo "== $part"
  case $part in
    kernel) "$python" benchmarks/kernel.py --check && "$python" benchmarks/host_time.py ;;
    # 8 x 64 is what the reference implementation's figure on a CPU is for; six drafts by the cost model.
    heavy-pair) "$python" benchmarks/heavy_benchmark.py --configurations 8x64 --num-speculative-tokens 6 \
      --repeats 5 ;;
    # Models whose time outweighs the interpreter's. Two at once beside the teacher: five would need 20 GiB.
    heavy-random) "$python" benchmarks/heavy_benchmark.py --pair random-0.5b-0.15b --acceptance 0.9 \
      --configurations 2x24 --repeats 2 --together 3 \
      --methods teacher draft_model optimal original lockstep ;;
    model) "$python" benchmarks/model.py --batches 1 8 --drafts 0 1 4 7 ;;
    growth) "$python" benchmarks/growth.py ;;
    updates) for pair in example random-0.5b; do "$python" benchmarks/weight_updates.py --pair "$pair"; done ;;
    *) echo "cpu.sh: there is no part $part; known are kernel heavy-pair heavy-random model growth updates" >&2; exit 1 ;;
  esac
done
"$python" benchmarks/table.py --write
