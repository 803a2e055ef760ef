#!/usr/bin/env bash
# Run the whole workshop on this machine: set-up, then every notebook at tier cpu with the tiny model, then a report.
# 13 to 25 minutes on 2 cores, including the set-up; only the set-up needs a network. Options go to run_notebooks.py:
#
#   bash scripts/run_workshop.sh
#   bash scripts/run_workshop.sh --hardware smoke --output-dir runs/trial
#   HF_HUB_OFFLINE=0 bash scripts/run_workshop.sh --hardware auto       may download full-size models
set -euo pipefail

started=$SECONDS
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$repo/setup/create_env.sh"
python=$(bash "$repo/setup/create_env.sh" --print-python)
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" WANDB_MODE="${WANDB_MODE:-offline}"
unset PYTHONDONTWRITEBYTECODE # some containers set it, and then every process compiles all packages: 12 s

"$python" "$repo/setup/check_environment.py"
echo
result=0
"$python" "$repo/scripts/run_notebooks.py" "$@" || result=$?
minutes=$(((SECONDS - started) / 60)) seconds=$(((SECONDS - started) % 60))
echo "The workshop took $minutes min $seconds s, including the set-up."
exit $result
