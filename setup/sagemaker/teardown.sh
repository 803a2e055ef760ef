#!/usr/bin/env bash
# Remove a class from the AWS account, in the order that works: endpoints and jobs, then the policy, bucket and stack.
#
#   bash setup/sagemaker/teardown.sh --region us-east-1               asks before it deletes anything
#   bash setup/sagemaker/teardown.sh --region us-east-1 --dry-run     prints the commands only
#
# --stack NAME is the stack of class.yaml (rl-workshop). --yes does not ask. Needs the AWS CLI with an administrator's
# credentials. All resources of all learners in the region are deleted, with their results.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
region=
stack=rl-workshop
dry_run=no
yes=no

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() { printf 'teardown.sh: %s\n' "$*" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --dry-run) dry_run=yes; shift ;;
        --yes) yes=yes; shift ;;
        --region | --stack)
            [ $# -ge 2 ] || fail "$1 has no value: pass one after it."
            case $1 in
                --region) region=$2 ;;
                --stack) stack=$2 ;;
            esac
            shift 2 ;;
        *) fail "unknown option '$1': --help lists the options." ;;
    esac
done

[ -n "$region" ] || fail "--region is missing: pass the region of the class, such as us-east-1."

run() {
    printf '+ %s\n' "$*"
    if [ $dry_run = no ]; then "$@"; fi
}

if [ $dry_run = no ]; then
    command -v aws >/dev/null || fail "'aws' is not installed: install the AWS CLI, or pass --dry-run."
    if [ $yes = no ]; then
        [ -t 0 ] || fail "not running interactively: pass --yes."
        read -r -p "Delete the stack $stack in $region, with all jobs, endpoints and files of all learners? [y/N] " answer
        [ "$answer" = y ] || fail "nothing was done: you did not answer y."
    fi
fi

# Print an output of the stack.
output() {
    if [ $dry_run = yes ]; then
        printf '%s' "$1"
    else
        aws cloudformation describe-stacks --region "$region" --stack-name "$stack" --output text \
            --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue"
    fi
}
bucket=$(output BucketName)
policy=$(output LearnerPolicyArn)
[ -n "$bucket" ] && [ -n "$policy" ] || fail "the stack $stack in $region has no outputs: pass --stack of class.yaml's."

# Step 1: endpoints and jobs. They need the role and the bucket, and endpoints would outlive both and cost money.
# A running job is an error here: stop it (launch_sagemaker.py stop NAME --everyone), then run this script again.
run python "$repo/scripts/launch_sagemaker.py" delete --all --everyone --yes --region "$region"

# Step 2: detach the policy. CloudFormation deletes no policy that is attached.
for kind in user group role; do
    printf '+ aws iam detach-%s-policy --policy-arn %s, for every %s with the policy\n' $kind "$policy" $kind
    if [ $dry_run = no ]; then
        case $kind in
            user) query='PolicyUsers[].UserName' ;;
            group) query='PolicyGroups[].GroupName' ;;
            role) query='PolicyRoles[].RoleName' ;;
        esac
        for name in $(aws iam list-entities-for-policy --policy-arn "$policy" --query "$query" --output text); do
            aws iam "detach-$kind-policy" "--$kind-name" "$name" --policy-arn "$policy"
        done
    fi
done

# Step 3: empty the bucket. CloudFormation deletes no bucket with files.
run aws s3 rm --recursive --only-show-errors "s3://$bucket"

# Step 4: the stack.
run aws cloudformation delete-stack --region "$region" --stack-name "$stack"
run aws cloudformation wait stack-delete-complete --region "$region" --stack-name "$stack"

printf '\nDone. An image, if you pushed one: aws ecr delete-repository --region %s --repository-name rl-workshop --force\n' "$region"
printf 'A Studio space costs money until you stop it. See what is left: launch_sagemaker.py status --region %s\n' "$region"
