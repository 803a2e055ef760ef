"""Self-checks of the notebook "SageMaker training"."""

import re

from .runner import Case, Check, Wrong


def _bill(work, save_every, start, machines, *, saved=lambda trained, every: max(0, trained) // every * every,
          later_start=None, resumes=True, ends_early=True):
    """Return the minutes billed; each argument after `*` changes one rule, as a typical wrong answer does."""
    billed, done, starts = 0, 0, start
    for lasts in machines:
        if ends_early and lasts >= starts + work - done:
            break
        billed += lasts
        done = saved(lasts - starts, save_every) + (done if resumes else 0)
        starts = start if later_start is None else later_start
    return billed + starts + work - done


check_billed_minutes = Check("{} bills.", [
    Case(60, 20, 5, [], gives=65, hint="One machine, never taken back: its start and the work."),
    Case(240, 60, 6, [90], gives=276,
         hint="The first machine trains for 84 minutes and has saved 60. Its 90 minutes are billed; then 6 + 180."),
    Case(240, 60, 6, [90, 132], gives=288,
         hint="The second machine begins with 60 minutes saved and adds 120: 180 are saved when it goes."),
    Case(100, 30, 10, [5], gives=115, hint="A machine taken back before it trains costs 5 minutes and saves nothing."),
    Case(100, 30, 10, [200], gives=110, hint="The machine lasts longer than the job: the bill ends with the job."),
    Case(90, 30, 0, [45, 45, 45], gives=120, hint="Two machines save 60 minutes; the third trains the last 30."),
], wrong=[
    Wrong(lambda *job: _bill(*job, saved=lambda trained, every: trained),
          "You count all training of a machine. What follows its last checkpoint is lost: round down to save_every."),
    Wrong(lambda *job: _bill(*job, later_start=0),
          "Every machine has to start, not only the first one: bill `start` again."),
    Wrong(lambda *job: _bill(*job, resumes=False),
          "A new machine resumes from the checkpoint: add what it saves to what was saved before."),
    Wrong(lambda *job: _bill(*job, saved=lambda trained, every: trained // every * every),
          "A machine that goes before it trains has not lost saved work: max(0, lasts - start)."),
    Wrong(lambda *job: _bill(*job, ends_early=False),
          "You bill a machine for its whole time although the job ends first: compare with `start` and the work left."),
])

REWARD, LOSS = r"metrics grpo .* reward=([-+0-9.e]+)", r"metrics grpo .* loss=([-+0-9.e]+)"
LOG = """\
metrics sft step=1 of=2 loss=5.85 reward=9
metrics grpo step=1 of=3 loss=-0.01 reward=0.125 rewards/format_reward/mean=0.9
SFT: a line without a metric, reward=
metrics grpo step=2 of=3 loss=2.5e-05 reward=-0.5 rewards/format_reward/mean=1
metrics grpo step=3 of=3 loss=0 reward=1e-05 rewards/format_reward/mean=1"""
check_logged_values = Check("{} logs read as SageMaker reads them.", [
    Case(LOSS, "[rank0] metrics grpo step=1 of=3 loss=0.5", gives=[0.5],
         hint="One line, one value, in a list. The metric can be anywhere in the line: re.search, not re.match."),
    Case(LOSS, "metrics grpo step=1 of=3 loss=0.5\nsaved", gives=[0.5],
         hint="`saved` does not match, and re.search gives None: skip such a line."),
    Case(REWARD, LOG, gives=[0.125, -0.5, 1e-05],
         hint="float() of group 1 in each matching line, in order. A line that does not match gives None: skip it."),
    Case(LOSS, LOG, gives=[-0.01, 2.5e-05, 0.0], hint="float() reads -0.01 and 2.5e-05 as they are, and 0 is a value."),
    Case(r"metrics ppo .* kl=([-+0-9.e]+)", LOG, gives=[], hint="The metric is not in the log: return an empty list."),
    Case(r"a=(\d)", "a=1 a=2\na=3", gives=[1.0, 3.0], hint="One value per line: use re.search on each line."),
], wrong=[
    Wrong(lambda regex, log: [float(value) for value in re.findall(regex, log)],
          "re.findall finds every match of a line. One value per line: use re.search on each line."),
    Wrong(lambda regex, log: [found[1] for line in log.splitlines() if (found := re.search(regex, line))],
          "Group 1 is text: make a number of it with float()."),
    Wrong(lambda regex, log: [float(found[0]) for line in log.splitlines() if (found := re.search(regex, line))],
          "found[0] is the whole match; group 1 is found[1]."),
    Wrong(lambda regex, log: [float(found[1]) for line in log.splitlines() if (found := re.match(regex, line))],
          "re.match looks at the beginning of a line only. The metric can be anywhere: use re.search."),
    Wrong(lambda regex, log: [float(found[1]) for line in log if (found := re.search(regex, line))],
          "A loop over a text gives single characters: use log.splitlines()."),
    Wrong(lambda regex, log: [int(found[1]) for line in log.splitlines() if (found := re.search(regex, line))],
          "The value is not a whole number: use float(), not int()."),
])
