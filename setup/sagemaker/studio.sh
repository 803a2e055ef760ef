#!/usr/bin/env bash
# Set the workshop up in a SageMaker Studio space (JupyterLab or Code Editor) and register its kernel.
#
#   bash setup/sagemaker/studio.sh           in a terminal of the space, in the clone of the workshop
#   bash setup/sagemaker/studio.sh --help
#
# The environment is .venv in the clone, on the space's volume, so it survives a restart of the space.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
kernel=rl-workshop

case ${1:-} in
    "") ;;
    --help | -h) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) printf "studio.sh: unknown option '%s': the only option is --help.\n" "$1" >&2; exit 2 ;;
esac

# Step 1: the packages. Studio's conda environment stays unchanged (create_env.sh makes .venv in base).
cd "$repo"
bash setup/create_env.sh
python=$(bash setup/create_env.sh --print-python)

# Step 2: the packages for launching jobs.
"$python" -m pip install -qq --disable-pip-version-check -r setup/requirements/sagemaker.txt

# Step 3: the kernel, where JupyterLab and Code Editor look for kernels.
"$python" -m ipykernel install --user --name "$kernel" --display-name "RL workshop" >/dev/null
echo "The kernel 'RL workshop' is registered. Choose it in a notebook; if it is not listed, reload the page."

# Step 4: show region and identity, which launching jobs needs. Neither is a secret.
"$python" - <<'PYTHON'
import boto3
from botocore.exceptions import BotoCoreError, ClientError

session = boto3.Session()
print(f"Region: {session.region_name or 'none: set AWS_DEFAULT_REGION'}")
try:
    print(f"Role or user: {session.client('sts').get_caller_identity()['Arn']}")
except (BotoCoreError, ClientError) as error:
    print(f"No AWS credentials ({type(error).__name__}): everything except launching jobs works.")
PYTHON
echo "Stop the space when you have finished: it costs money while it runs."
