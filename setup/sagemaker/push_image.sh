#!/usr/bin/env bash
# Build the training container of setup/sagemaker/Dockerfile and push it to ECR, in your account and region.
#
#   bash setup/sagemaker/push_image.sh --account 123456789012 --region us-east-1
#   bash setup/sagemaker/push_image.sh --account 123456789012 --region us-east-1 --dry-run    prints the commands only
#
# --repository NAME and --tag TAG name the image (rl-workshop, pytorch2.13).
# Needs docker, the AWS CLI with credentials, and about 40 GB of free disk; no GPU.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
account=
region=
repository=rl-workshop
tag=pytorch2.13
dry_run=no

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() { printf 'push_image.sh: %s\n' "$*" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --dry-run) dry_run=yes; shift ;;
        --account | --region | --repository | --tag)
            [ $# -ge 2 ] || fail "$1 has no value: pass one after it."
            case $1 in
                --account) account=$2 ;;
                --region) region=$2 ;;
                --repository) repository=$2 ;;
                --tag) tag=$2 ;;
            esac
            shift 2 ;;
        *) fail "unknown option '$1': --help lists the options." ;;
    esac
done

[ -n "$account" ] || fail "--account is missing: pass 12 digits, which 'aws sts get-caller-identity --query Account' prints."
[ -n "$region" ] || fail "--region is missing: pass the region of the jobs, such as us-east-1."
[[ $account =~ ^[0-9]{12}$ ]] || fail "--account '$account' is not an AWS account: pass 12 digits, without dashes."
[[ $region =~ ^[a-z]{2}(-[a-z]+)+-[0-9]$ ]] || fail "--region '$region' is not an AWS region: pass one such as us-east-1."

run() {
    printf '+ %s\n' "$*"
    if [ $dry_run = no ]; then "$@"; fi
}

if [ $dry_run = no ]; then
    for program in docker aws; do
        command -v "$program" >/dev/null || fail "'$program' is not installed: install it, or use --dry-run."
    done
fi

registry=$account.dkr.ecr.$region.amazonaws.com
image=$registry/$repository:$tag

# Step 1: build for linux/amd64, on any machine. AWS's container comes from its public registry, without a login.
run docker build --platform linux/amd64 --tag "$image" --file "$repo/setup/sagemaker/Dockerfile" "$repo"

# Step 2: create a repository that scans images.
printf '+ aws ecr describe-repositories ... || aws ecr create-repository --repository-name %s\n' "$repository"
if [ $dry_run = no ]; then
    aws ecr describe-repositories --region "$region" --repository-names "$repository" >/dev/null 2>&1 \
        || aws ecr create-repository --region "$region" --repository-name "$repository" \
            --image-scanning-configuration scanOnPush=true --tags Key=project,Value=rl-workshop >/dev/null
fi

# Step 3: log in, with a password that passes through a pipe and is never shown, and push.
printf '+ aws ecr get-login-password --region %s | docker login --username AWS --password-stdin %s\n' "$region" "$registry"
if [ $dry_run = no ]; then
    aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$registry"
fi
run docker push "$image"

printf '\nThe image: %s\nUse it: python scripts/launch_sagemaker.py train --image %s ...\n' "$image" "$image"
printf 'It costs about 0.10 USD per GB and month. Delete it after the course:\n'
printf '  aws ecr delete-repository --region %s --repository-name %s --force\n' "$region" "$repository"
