#!/usr/bin/env bash
# Check a machine's GPU in less than nine minutes, without a network: what trains there, how fast, with how much memory.
#
#   bash scripts/gpu_check.sh                       writes outputs/gpu-check/gpu_check.json and .md
#   bash scripts/gpu_check.sh --wheels DIR          with wheels that the machine's Python lacks
#   bash scripts/gpu_check.sh --collect DIR         on a machine with a network: collect these wheels (about 3 MB)
#
# It uses PYTHON, the workshop's environment or python3, with torch 2.8 or newer and transformers 5. Without a GPU it runs
# with tiny shapes, which checks the check.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(bash "$repo/setup/create_env.sh" --print-python 2>/dev/null || true)}
command -v "$python" >/dev/null || python=python3
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} # one GPU is checked
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false VLLM_NO_USAGE_STATS=1
exec "$python" "$repo/scripts/gpu_check.py" "$@"
