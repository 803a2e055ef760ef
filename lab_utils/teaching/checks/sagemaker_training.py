"""Self-check of the notebook "SageMaker training"."""

from .runner import Case, Check

REWARD, LOSS = r"metrics grpo .* reward=([-+0-9.e]+)", r"metrics grpo .* loss=([-+0-9.e]+)"
LOG = """\
metrics sft step=1 of=2 loss=5.85 reward=9
metrics grpo step=1 of=3 loss=-0.01 reward=0.125 rewards/format_reward/mean=0.9
SFT: a line without a metric, reward=
metrics grpo step=2 of=3 loss=2.5e-05 reward=-0.5 rewards/format_reward/mean=1
metrics grpo step=3 of=3 loss=0 reward=1e-05 rewards/format_reward/mean=1"""
check_logged_values = Check("{} logs read as SageMaker reads them.", [
    Case(REWARD, LOG, gives=[0.125, -0.5, 1e-05], hint="float() of group 1 in each matching line, in order."),
    Case(LOSS, LOG, gives=[-0.01, 2.5e-05, 0.0], hint="float() reads -0.01 and 2.5e-05 as they are, and 0 is a value."),
    Case(r"metrics ppo .* kl=([-+0-9.e]+)", LOG, gives=[], hint="The metric is not in the log: return an empty list."),
    Case(LOSS, "[rank0] metrics grpo step=1 of=3 loss=0.5", gives=[0.5],
         hint="The metric can be anywhere in the line: re.search, not re.match."),
    Case(r"a=(\d)", "a=1 a=2\na=3", gives=[1.0, 3.0], hint="One value per line: use re.search on each line."),
])
