#!/usr/bin/env bash
# Everything that must pass: set-up, style, freshness of the notebooks, all tests (every notebook at tier smoke among them).
# At most 12 minutes on 2 cores. Options go to pytest, and the last line is pytest's own:
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh -m unit -k rewards
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$repo/setup/create_env.sh" --dev
python=$(bash "$repo/setup/create_env.sh" --print-python)
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
cd "$repo"

"$python" setup/check_environment.py
"$python" -m ruff check .
"$python" scripts/build_notebooks.py --check
# Two workers of one thread each: most tests are too small to gain from two threads. Files stay whole, for their
# fixtures, and start in order: the notebooks, which take longest, come first.
OMP_NUM_THREADS=1 exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
