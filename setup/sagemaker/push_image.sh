#!/usr/bin/env bash
# Build the training container of setup/sagemaker/Dockerfile and push it to ECR, in your account and region.
#
#   bash setup/sagemaker/push_image.sh --account 123456789012 --region us-east-1
#   bash setup/sagemaker/push_image.sh --account 123456789012 --region us-east-1 --dry-run    prints the commands only
#
# Needs docker, the AWS CLI with credentials, and about 40 GB of free disk; no GPU.
set -euo pipefail

account=
region=
dry_run=no
fail() { printf 'push_image.sh: %s\n' "$*" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=yes ;;
        --account | --region)
            [ $# -ge 2 ] || fail "$1 has no value: pass one after it."
            if [ "$1" = --account ]; then account=$2; else region=$2; fi
            shift ;;
        *) fail "unknown option '$1': --help lists the options." ;;
    esac
    shift
done

[[ $account =~ ^[0-9]{12}$ ]] || fail "--account '$account' is not an AWS account:" \
    "pass the 12 digits, without dashes, that 'aws sts get-caller-identity --query Account' prints."
[[ $region =~ ^[a-z]{2}(-[a-z]+)+-[0-9]$ ]] || fail "--region '$region' is not an AWS region: pass one such as us-east-1."

run() {  # a line of shell, printed first
    printf '+ %s\n' "$1"
    if [ $dry_run = no ]; then bash -o pipefail -c "$1"; fi
}

registry=$account.dkr.ecr.$region.amazonaws.com
image=$registry/rl-workshop:pytorch2.13
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Build for linux/amd64, on any machine. AWS's container comes from its public registry, without a login.
run "docker build --platform linux/amd64 --tag $image --file setup/sagemaker/Dockerfile ."
run "aws ecr describe-repositories --region $region --repository-names rl-workshop >/dev/null 2>&1 \
|| aws ecr create-repository --region $region --repository-name rl-workshop \
--image-scanning-configuration scanOnPush=true --tags Key=project,Value=rl-workshop >/dev/null"
# The password passes through a pipe and is never shown.
run "aws ecr get-login-password --region $region | docker login --username AWS --password-stdin $registry"
run "docker push $image"

printf '\nThe image: %s\nUse it: python scripts/launch_sagemaker.py train --image %s ...\n' "$image" "$image"
printf 'It costs about 0.10 USD per GB and month. Delete it after the course:\n'
printf '  aws ecr delete-repository --region %s --repository-name rl-workshop --force\n' "$region"
