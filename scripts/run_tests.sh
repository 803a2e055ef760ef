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
exec "$python" -m pytest "$@"
