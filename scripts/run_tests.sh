#!/usr/bin/env bash
# Run everything that must pass: set-up, style, up-to-date notebooks, all tests (including every notebook at tier smoke).
# About 10 minutes on 2 cores. Options go to pytest, which prints the last line:
#
#   bash scripts/run_tests.sh
#   bash scripts/run_tests.sh -m unit -k rewards
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$repo/setup/create_env.sh" --dev
python=$(bash "$repo/setup/create_env.sh" --print-python)
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
unset PYTHONDONTWRITEBYTECODE # some containers set it, and then every process compiles all packages: 12 s
cd "$repo"

"$python" setup/check_environment.py
"$python" -m ruff check .
"$python" scripts/build_notebooks.py --check
# Two workers with one thread each, because most tests are too small for two threads. The tests of a file stay together,
# for their fixtures, and files start in order: the notebooks take longest and come first.
OMP_NUM_THREADS=1 exec "$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
