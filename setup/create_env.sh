#!/usr/bin/env bash
# Install the workshop into the active virtual or conda environment; without one, make .venv in the repository.
#
#   bash setup/create_env.sh                   everything that the notebooks need
#   bash setup/create_env.sh --dev             also what the tests need
#   bash setup/create_env.sh --print-python    install nothing, and print the path of the environment's Python
#
# A second run with the same requirements takes about a second. PYTHON=/path/to/python chooses the Python of a new .venv.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repo"
requirements=setup/requirements

dev=no
print_python=no
for argument in "$@"; do
    case $argument in
        --dev) dev=yes ;;
        --print-python) print_python=yes ;;
        *) echo "create_env.sh: unknown option '$argument': use --dev or --print-python." >&2; exit 2 ;;
    esac
done

say() { printf '[set-up] %s\n' "$*"; }

at_least_311() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Step 1: choose the environment. A conda base environment stays as it is: it belongs to conda (in Studio to Jupyter).
started=$SECONDS
ours=no
colab=no
if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
    python=$VIRTUAL_ENV/bin/python
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    python=$CONDA_PREFIX/bin/python
elif [ -n "${COLAB_RELEASE_TAG:-}" ]; then
    python=$(command -v python3)
    colab=yes
else
    ours=yes
    python=$repo/.venv/bin/python
    if [ ! -x "$python" ]; then
        base=
        for candidate in ${PYTHON:-python3 python3.12 python3.13 python3.11 python}; do
            if at_least_311 "$candidate"; then base=$candidate; break; fi
        done
        if [ -z "$base" ]; then
            echo "No Python 3.11 or newer was found (tried: ${PYTHON:-python3, python3.12, python3.13, python3.11, python}):" >&2
            echo "install one from python.org, with 'brew install python@3.12' or 'sudo apt-get install python3 python3-venv'," >&2
            echo "or give its path: PYTHON=/path/to/python3.12 bash setup/create_env.sh" >&2
            exit 1
        fi
        if ! "$base" -m venv .venv; then
            rm -rf .venv
            echo "'$base -m venv .venv' failed (see above). On Debian and Ubuntu run: sudo apt-get install python3-venv" >&2
            exit 1
        fi
    fi
fi
if ! at_least_311 "$python"; then
    echo "$python is $("$python" --version 2>&1), but the pinned packages need Python 3.11 or newer: deactivate this" >&2
    echo "environment, or make another one with: conda create -n rl-workshop python=3.12" >&2
    exit 1
fi
if [ $print_python = yes ]; then echo "$python"; exit 0; fi
prefix=$("$python" -c 'import sys; print(sys.prefix)')

# Step 2: choose what to install. A GPU means vLLM and bitsandbytes. An installed torch (Colab's) stays.
gpu=no
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then gpu=yes; fi
torch_pin=$(grep '^torch==' $requirements/cpu.txt)
version_of() {
    "$python" -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1" 2>/dev/null || true
}
torch_found=$(version_of torch)
keep_torch=$colab
if [ -n "$torch_found" ] && [ "torch==${torch_found%%+*}" != "$torch_pin" ]; then keep_torch=yes; fi
say "$("$python" --version) in $prefix, GPU: $gpu"

# Learners work in copies, which git ignores. A copy that exists stays as it is.
mkdir -p notebooks/mine
for notebook in notebooks/exercises/*; do
    copy=notebooks/mine/$(basename "$notebook")
    if [ ! -e "$copy" ]; then cp "$notebook" "$copy"; fi
done

stamp=$prefix/.rl-workshop-set-up
wanted=$(cat $requirements/*.txt pyproject.toml setup/create_env.sh | "$python" -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
wanted="$wanted gpu=$gpu repository=$repo"
# An environment that was set up with --dev is also enough without it.
if [ -f "$stamp" ]; then
    case $(cat "$stamp") in
        "$wanted dev=$dev" | "$wanted dev=yes") say "up to date ($((SECONDS - started)) s)"; exit 0 ;;
    esac
fi

pip() { "$python" -m pip "$@"; }
# -qq: errors only. --no-compile: Python compiles a module at its first import, and most are never imported.
install() { pip install -qq --no-compile --disable-pip-version-check "$@"; }

# Step 3: install torch. On Linux the package index has the CUDA build (several GB), so a machine without a GPU asks
# PyTorch's own index for the CPU build first. If that index cannot be reached, pip retries once and then uses the package
# index. With --no-deps it retries for torch only, not for each dependency (step 4 installs those).
started=$SECONDS
if [ -z "$torch_found" ] && [ $gpu = no ] && [ "$(uname -s)" = Linux ]; then
    say "torch, CPU build (about 200 MB): a minute or less ..."
    install --no-deps --retries 1 --timeout 10 --extra-index-url https://download.pytorch.org/whl/cpu "$torch_pin" \
        || say "that failed; the next step takes torch from the standard index"
    say "torch $(version_of torch): $((SECONDS - started)) s"
fi

# Step 4: install everything else.
started=$SECONDS
expect="half a minute to 2 minutes"
if [ $keep_torch = yes ]; then
    say "keeping the installed torch $torch_found (the workshop is tested with $torch_pin)"
    constraint=$prefix/.rl-workshop-constraint
    echo "torch==$torch_found" >"$constraint"
    base=$requirements/base.txt
    if [ $colab = yes ]; then
        # With new files of matplotlib and others under a running kernel, the first plot fails.
        kept=$("$python" -c 'from lab_utils.machine.environment import COLABS_OWN; print(*COLABS_OWN)')
        base=$prefix/.rl-workshop-requirements
        grep -vE "^(${kept// /|})==" $requirements/base.txt >"$base"
        for package in $kept; do
            found=$(version_of "$package")
            if [ -n "$found" ]; then echo "$package==$found" >>"$constraint"; fi
        done
        say "keeping Colab's $(tail -n +2 "$constraint" | tr '\n' ' ')"
    fi
    set -- -r "$base" -c "$constraint"
    if [ $gpu = yes ]; then
        set -- "$@" "$(grep '^bitsandbytes==' $requirements/gpu.txt)"
        say "vLLM is left out, because it needs exactly $torch_pin: everything runs without it, but sampling is slower"
    fi
elif [ $gpu = yes ]; then
    set -- -r $requirements/gpu.txt
    expect="several GB, 5 to 10 minutes"
else  # sagemaker.txt and serve.txt: notebooks 11 and 12 need them on a machine without vLLM
    set -- -r $requirements/cpu.txt -r $requirements/sagemaker.txt -r $requirements/serve.txt
fi
if [ $dev = yes ]; then set -- "$@" -r $requirements/dev.txt; fi
say "packages: $expect ..."
# uv takes a third of pip's time, but it does not read pip's configuration. So pip does it if that names an index, or if uv
# fails. In Colab, too, where the Python is the system's own.
uv() { install "$(grep '^uv==' $requirements/base.txt)" && "$python" -m uv pip install -q --python "$python" "$@"; }
if [ $colab = yes ] || pip config list | grep -q '\.index-url=' || ! uv "$@"; then install "$@"; fi
say "packages: $((SECONDS - started)) s"

# Step 5: install this repository, editable, and a Jupyter kernel for this environment only.
started=$SECONDS
install --no-deps --editable .
if [ $colab = no ]; then
    "$python" -m ipykernel install --sys-prefix --name rl-workshop --display-name "RL workshop" >/dev/null
fi
say "lab_utils and its kernel: $((SECONDS - started)) s"

# Step 6: check that the versions fit together. An environment of the user's own may have other conflicts, so there they
# are only reported.
started=$SECONDS
if ! pip check; then
    if [ $ours = yes ]; then
        echo "pip check found conflicts (above). Remove .venv and run this script again." >&2
        exit 1
    fi
    say "pip check found conflicts (above) in your environment; if an import fails, see setup/README.md"
fi
say "pip check: $((SECONDS - started)) s"

echo "$wanted dev=$dev" >"$stamp"
say "done in $SECONDS s"
if [ $ours = yes ]; then say "activate it with: source .venv/bin/activate"; fi
