"""The names in the account that the tests of SageMaker work with."""

REGION, BUCKET, ACCOUNT = "us-east-1", "workshop-bucket", "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/rl-workshop-execution"
PLACE = {"role": ROLE, "bucket": BUCKET, "region": REGION}
