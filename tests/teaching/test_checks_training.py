"""Tests of the self-checks of notebooks 04 and 06 to 12: the solution passes, typical mistakes get their hint."""

import math
import re

import pytest
import torch

from lab_utils import REPOSITORY
from lab_utils.evaluation import pass_at_k
from lab_utils.runs import RunDirectory
from lab_utils.teaching import checks
from lab_utils.teaching.checks import CheckFailed
from lab_utils.teaching.diagnosis import PROBLEMS
from lab_utils.teaching.inspection import expect, side_by_side
from lab_utils.training.ppo import generalized_advantages


def accepts(check, solution, capsys):
    check(solution)
    assert capsys.readouterr().out.startswith("OK: ")


def rejects(check, wrong, hint):
    with pytest.raises(CheckFailed, match=hint):
        check(wrong)


# --- 04 --------------------------------------------------------------------------------------------------------------


def completion_loss(logps, labels):
    return torch.nn.functional.cross_entropy(logps[:-1], labels[1:], ignore_index=-100)


def test_completion_loss_accepts(capsys):
    accepts(checks.check_completion_loss, completion_loss, capsys)
    accepts(checks.check_completion_loss, lambda logps, labels: float(completion_loss(logps, labels)), capsys)


def without_shift(logps, labels):
    return torch.nn.functional.cross_entropy(logps, labels, ignore_index=-100)


def over_all_tokens(logps, labels):
    return completion_loss(logps, labels) * (labels[1:] != -100).float().mean()


def from_the_first_label_on(logps, labels):
    first = max(1, int((labels != -100).nonzero()[0]))
    return -logps[range(first - 1, len(labels) - 1), labels[first:].clamp(min=0)].mean()


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (without_shift, "Row t predicts"),
        (over_all_tokens, "divide by the number of labelled"),
        (from_the_first_label_on, "choose by label"),
        (lambda logps, labels: -completion_loss(logps, labels), "Row t predicts"),
        (lambda logps, labels: logps, "Row t predicts"),
    ],
)
def test_completion_loss_rejects(wrong, hint):
    rejects(checks.check_completion_loss, wrong, hint)


# --- 06 --------------------------------------------------------------------------------------------------------------


def share_without_signal(rewards, size, same=lambda group: max(group) == min(group)):
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    return sum(map(same, groups)) / len(groups)


def test_share_without_signal_accepts(capsys):
    accepts(checks.check_share_without_signal, share_without_signal, capsys)
    accepts(checks.check_share_without_signal,
            lambda rewards, size: (torch.tensor(rewards).view(-1, size).std(1) == 0).float().mean(), capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda rewards, size: share_without_signal(rewards, size, lambda group: not any(group)), "All right is no"),
        (lambda rewards, size: share_without_signal(rewards, 2), "the group has four|in the first one"),
        (lambda rewards, size: float(max(rewards) == min(rewards)), "Two groups"),
        (lambda rewards, size: share_without_signal([round(r) for r in rewards], size), "small difference"),
        (lambda rewards, size: share_without_signal(rewards, size, lambda group: group[0] == group[-1]), "the last"),
        (lambda rewards, size: None, "Two groups"),
    ],
)
def test_share_without_signal_rejects(wrong, hint):
    rejects(checks.check_share_without_signal, wrong, hint)


# --- 07 --------------------------------------------------------------------------------------------------------------


def gae(rewards, values, gamma, lam):
    advantages, next_value, next_advantage = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        next_advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        next_value = value
        advantages.insert(0, next_advantage)
    return advantages


def test_gae_accepts_the_loop_and_the_trainers_own(capsys):
    accepts(checks.check_gae, gae, capsys)
    accepts(
        checks.check_gae,
        lambda rewards, values, gamma, lam: generalized_advantages(
            torch.tensor([rewards], dtype=torch.float64), torch.tensor([values], dtype=torch.float64),
            torch.ones(1, len(rewards)), gamma, lam,
        )[0][0],
        capsys,
    )


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda r, v, gamma, lam: [a + b for a, b in zip(gae(r, v, gamma, lam), v, strict=True)], "the return that"),
        (lambda r, v, gamma, lam: gae(r, v, gamma, 1.0), "only the next prediction"),
        (lambda r, v, gamma, lam: gae(r, v, gamma, 0.0), "every token gets 1"),
        (lambda r, v, gamma, lam: gae(r, v, 1.0, gamma * lam), "gamma discounts twice"),
        (lambda r, v, gamma, lam: gae([0] * (len(r) - 1) + r[-1:], v, gamma, lam), "reward of its own"),
        (lambda r, v, gamma, lam: gae(r, v, gamma, lam)[:-1], "every token gets 1"),
    ],
)
def test_gae_rejects(wrong, hint):
    rejects(checks.check_gae, wrong, hint)


# --- 08 --------------------------------------------------------------------------------------------------------------


def test_pass_at_k_accepts_the_formula_and_ours(capsys):
    accepts(checks.check_pass_at_k, lambda n, c, k: 1 - math.comb(n - c, k) / math.comb(n, k), capsys)
    accepts(checks.check_pass_at_k, pass_at_k, capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda n, c, k: 1 - (1 - c / n) ** k, "without putting back"),
        (lambda n, c, k: float(c > 0), "One draw"),
        (lambda n, c, k: c / n, "without putting back"),
        (lambda n, c, k: pass_at_k(n, c, k) if n < 100 else 1.0, "Large n"),
    ],
)
def test_pass_at_k_rejects(wrong, hint):
    rejects(checks.check_pass_at_k, wrong, hint)


def first_verdict(text):
    found = re.search(r"\b(yes|no)\b", text)
    return found and found[1]


def test_first_verdict_accepts(capsys):
    accepts(checks.check_first_verdict, first_verdict, capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda text: (re.search("yes|no", text) or [None])[0], "a word of its own|A word of its own"),
        (lambda text: "yes" if "yes" in text else first_verdict(text), "first one counts"),
        (lambda text: first_verdict(text) or "no", "nothing was checked"),
    ],
)
def test_first_verdict_rejects(wrong, hint):
    rejects(checks.check_first_verdict, wrong, hint)


# --- 09 --------------------------------------------------------------------------------------------------------------

RECORDED = REPOSITORY / "notebooks" / "recorded" / "runs"
RUNS = {letter: RunDirectory(RECORDED / letter) for letter in "ABCDEFGH"}
HEALTHY = RunDirectory(RECORDED / "healthy")
DIAGNOSIS = {"B": "learning rate too high", "C": "problems too easy", "D": "hacked reward",
             "E": "learning rate too low", "F": "nothing to reward", "G": "dead reward function",
             "H": "sampler not updated"}


def test_diagnosis_accepts(capsys):
    accepts(lambda diagnosis: checks.check_diagnosis(diagnosis, RUNS, HEALTHY), DIAGNOSIS, capsys)


@pytest.mark.parametrize("letter", DIAGNOSIS)
def test_every_other_diagnosis_is_rejected_with_numbers_and_without_the_answer(letter):
    for name in set(PROBLEMS) - {DIAGNOSIS[letter]}:
        with pytest.raises(CheckFailed, match=rf"Run {letter} is not a case of '{name}'.*\nHint: .* → ") as failure:
            checks.check_diagnosis(DIAGNOSIS | {letter: name}, RUNS, HEALTHY)
        assert DIAGNOSIS[letter] not in str(failure.value)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (DIAGNOSIS | {"B": "collapse"}, "Copy the name"),
        ({letter: name for letter, name in DIAGNOSIS.items() if letter != "E"}, "add diagnosis\\['E'\\]"),
    ],
)
def test_diagnosis_rejects(wrong, hint):
    rejects(lambda diagnosis: checks.check_diagnosis(diagnosis, RUNS, HEALTHY), wrong, hint)


def alarms(metrics, function_pays_nothing=lambda column: column == 0):
    columns = [name for name in metrics if name.startswith("rewards/") and name.endswith("/mean")]
    return ((metrics["completions/clipped_ratio"] > 0.1) | (metrics["frac_reward_zero_std"] > 0.5)
            | (metrics["kl"] > 0.15) | function_pays_nothing(metrics[columns]).any(axis=1))


def first_alarm(metrics, patience=3, alarms=alarms):
    count = 0
    for step, alarm in zip(metrics["step"], alarms(metrics), strict=True):
        count = count + 1 if alarm else 0
        if count == patience:
            return step
    return None


def test_first_alarm_accepts(capsys):
    accepts(checks.check_first_alarm, first_alarm, capsys)


def in_all(metrics, patience=3):
    steps = metrics["step"][alarms(metrics)]
    return None if len(steps) < patience else int(steps.iloc[patience - 1])


def each_reason_on_its_own(metrics, patience=3):
    healthy = {"completions/clipped_ratio": 0, "frac_reward_zero_std": 0, "kl": 0, "rewards/sum/mean": 1}
    found = [first_alarm(metrics.assign(**{name: healthy[name] for name in set(healthy) - {reason}}), patience)
             for reason in healthy]
    return min((step for step in found if step), default=None)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda metrics, patience=3: 0, "gives None"),
        (in_all, "in a row"),
        (lambda metrics, patience=3: first_alarm(metrics), "two in a row are enough"),
        (lambda metrics, patience=3: first_alarm(metrics, 1), "in a row"),
        (each_reason_on_its_own, "take turns"),
        (lambda metrics, patience=3: first_alarm(metrics.assign(step=metrics.index + 1), patience), "column step"),
        (lambda metrics, patience=3: first_alarm(
            metrics, patience, lambda m: alarms(m, lambda columns: columns < 0)), "pays 0"),
        (lambda metrics, patience=3: first_alarm(
            metrics, patience, lambda m: alarms(m) | (m["rewards/sum/std"] == 0)), "end with /mean"),
    ],
)
def test_first_alarm_rejects(wrong, hint):
    rejects(checks.check_first_alarm, wrong, hint)


# --- 10 --------------------------------------------------------------------------------------------------------------


def logged_values(regex, log):
    return [float(found[1]) for line in log.splitlines() if (found := re.search(regex, line))]


def test_logged_values_accepts(capsys):
    accepts(checks.check_logged_values, logged_values, capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda regex, log: [float(value) for value in re.findall(regex, log)], "One value a line"),
        (lambda regex, log: [str(value) for value in logged_values(regex, log)], "in order"),
        (lambda regex, log: logged_values(regex, log) or None, "an empty list"),
        (lambda regex, log: logged_values(regex.replace("grpo", ""), log), "other stages do not match"),
        (lambda regex, log: [value for value in logged_values(regex, log) if value], "0 is a value"),
        (lambda regex, log: logged_values(regex, log.lower())[:1], "in order"),
        (lambda regex, log: logged_values(f"^{regex}", log), "re.search, not re.match"),
    ],
)
def test_logged_values_rejects(wrong, hint):
    rejects(checks.check_logged_values, wrong, hint)


# --- 11 --------------------------------------------------------------------------------------------------------------


def merge_lora(weight, lora_A, lora_B, alpha):
    return weight + alpha / lora_A.shape[0] * (lora_B @ lora_A)


def test_merge_lora_accepts(capsys):
    accepts(checks.check_merge_lora, merge_lora, capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda weight, a, b, alpha: alpha / a.shape[0] * (b @ a), "Add the update"),
        (lambda weight, a, b, alpha: weight + b @ a, "scaled by alpha / r"),
        (lambda weight, a, b, alpha: weight + alpha * (b @ a), "here 2"),
        (lambda weight, a, b, alpha: weight + alpha / a.shape[0] * (b @ a).T, r"\(out, r\)"),
        (lambda weight, a, b, alpha: weight.add_(alpha / a.shape[0] * (b @ a)), "return a new tensor"),
        (lambda weight, a, b, alpha: None, "has the shape"),
    ],
)
def test_merge_lora_rejects(wrong, hint):
    rejects(checks.check_merge_lora, wrong, hint)


# --- 12 --------------------------------------------------------------------------------------------------------------


def conclude(what, difference, low, high, problems, seeds):
    verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
    return (f"{what}: {verdict} ({100 * difference:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}; "
            f"{problems} problems, {seeds} seed(s))")


def test_conclude_accepts(capsys):
    accepts(checks.check_conclude, conclude, capsys)
    accepts(checks.check_conclude, lambda *facts: conclude(*facts).replace("not shown to", "Not shown better:"), capsys)
    accepts(checks.check_conclude, lambda *facts: conclude(*facts).replace("-", "−"), capsys)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda what, d, low, high, n, s: conclude(what, d, d, d, n, s), "one decimal|0 lies"),
        (lambda what, d, low, high, n, s: conclude(what, d, low or 1e-9, high, n, s), "touches 0"),
        (lambda *facts: conclude(*facts) + " This proves it.", "proves nothing"),
        (lambda *facts: conclude(*facts).split("(")[0], "both ends of its interval"),
        (lambda *facts: conclude(*facts).replace("-1.1", "1.1"), "with its minus sign"),
        (lambda *facts: None, "Return a string"),
    ],
)
def test_conclude_rejects(wrong, hint):
    rejects(checks.check_conclude, wrong, hint)


# --- What the notebooks print ----------------------------------------------------------------------------------------


def test_columns_stand_side_by_side_and_wrap():
    text = side_by_side({"before": "a b\nc", "after": "one two three four"}, width=23)
    assert text.splitlines() == [
        "before     │ after",
        "────────── │ ──────────",
        "a b        │ one two",
        "c          │ three four",
    ]


@pytest.mark.parametrize(("hardware", "word"), [("smoke", "skipped"), ("cpu", "NOT YET")])
def test_a_claim_is_skipped_at_tier_smoke(hardware, word, capsys):
    from lab_utils.config import load

    expect(load("countdown-grpo", hardware), "accuracy rises", holds=False)
    assert capsys.readouterr().out.split("accuracy")[0].strip() == word
