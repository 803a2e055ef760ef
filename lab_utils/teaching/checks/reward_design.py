"""Self-checks of the notebook "Reward design"."""

import statistics
from collections.abc import Callable
from typing import Any

from ... import rewards
from .runner import Case, Check, Wrong, close


def scored(completion: str, value: float, hint: str, **columns: Any) -> Case:
    """Return the call of a reward with one completion, as TRL makes it, and the value that the completion earns."""
    lists = {column: [entry] for column, entry in columns.items()}
    return Case(completions=[completion], **lists, gives=[value], hint=hint)


def with_messages(cases: list[Case], hint: str) -> list[Case]:
    """Return the cases of a reward and one more: all their completions in one call, each as a list of messages."""
    columns = {column: [case.keywords[column][0] for case in cases] for column in cases[0].keywords}
    columns["completions"] = [[{"role": "assistant", "content": text}] for text in columns["completions"]]
    return [*cases, Case(**columns, gives=[case.gives[0] for case in cases], hint=hint)]


def same_rewards(got: Any, wanted: list[float]) -> bool | str:
    """Compare the values of a reward."""
    if not isinstance(got, list) or len(got) != len(wanted):
        return "A reward returns a list with one number for each completion."
    return all(map(close, got, wanted))


OK = "{} calls, with completions as text and as messages."
MESSAGES = "TRL passes each completion as a list of messages. `completion_text(completion)` gives its text."

check_correctness_reward = Check(OK, with_messages([
    scored("<answer>72</answer>", 2.0, "The correct number in <answer> tags earns 2.0. `answer` is a list: each "
           "completion belongs to the gold number at its place.", answer="72"),
    scored("<answer>71</answer>", 0.0, "A wrong number earns 0.0.", answer="72"),
    scored("<reasoning>\n9 * 8\n</reasoning>\n<answer>\n72\n</answer>", 2.0, answer="72",
           hint="The answer can be on a line of its own: '.' does not match a line break without re.DOTALL."),
    scored("<answer>$1,000</answer>", 2.0, "$1,000 is 1000. `numbers_match` compares by value.", answer="1000"),
    scored("<answer>72.0</answer>", 2.0, "72.0 is 72. Compare numbers, not text.", answer="72"),
    scored("<answer>banana</answer>", 0.0, "No number, no reward, and no exception either.", answer="72"),
    scored("The answer is 72.", 0.0, "Without tags there is no answer: the format counts too.", answer="72"),
    scored("<answer>71</answer> No, it is 72.", 0.0, "Only the text inside the tags counts.", answer="72"),
    scored("<answer>71</answer> No: <answer>72</answer>", 2.0, "The last complete answer counts.", answer="72"),
    scored("", 0.0, "An empty completion earns 0.0.", answer="72"),
], MESSAGES), same=same_rewards)

GOOD = "<reasoning>\n9 * 8 = 72\n</reasoning>\n<answer>\n72\n</answer>"
check_strict_format_reward = Check(OK, with_messages([
    scored(GOOD, 0.5, "This is the format that the prompt asks for. A reward that never fires teaches nothing."),
    scored(GOOD.replace(" =", "\n="), 0.5, "The reasoning can have several lines: '.' needs re.DOTALL to match them."),
    scored(GOOD + "\n", 0.5, "A line break at the very end does no harm: allow it."),
    scored(GOOD.replace("\n", " "), 0.0, "Here the tags are not on lines of their own."),
    scored("Sure!\n" + GOOD, 0.0, "There is text before the first tag: match all of it (re.fullmatch)."),
    scored(GOOD + "\nI hope this helps.", 0.0, "There is text after the last tag: match all of it (re.fullmatch)."),
    scored(GOOD.replace("</reasoning>\n", ""), 0.0, "A tag is missing."),
    scored("<reasoning>\na\n</reasoning>\n" + GOOD, 0.0, "Two <reasoning> blocks, one answer: count each tag."),
    scored(GOOD.replace("9 * 8 = 72", "8 < 9, so 72"), 0.5, "A '<' in the text is not a tag."),
    scored(GOOD + "\n" + GOOD, 0.0, "With re.DOTALL, '.*?' can run across tags: check that each tag occurs once."),
], MESSAGES), same=same_rewards)

# What the cases of the mix call by name: two rewards of the workshop, and some that fail.
PARTS: dict[str, Callable[..., Any]] = {
    "correctness_reward": rewards.correctness_reward,
    "int_reward": rewards.int_reward,
    "returns_none": lambda completions, **columns: [1.0, None],
    "returns_nan": lambda completions, **columns: [float("nan"), 1.0],
    "returns_inf": lambda completions, **columns: [1.0, float("inf")],
    "returns_one_value": lambda completions, **columns: [1.0],
}
RIGHT, WRONG = "<answer>72</answer>", "<answer>71</answer>"


def pay_by_mix(mix: Callable, names: list[str], weights: list[float], texts: list[str]) -> Any:
    """Return what the learner's mix pays for `texts`, or "ValueError" where it raises one."""
    functions = [PARTS[name] for name in names]
    try:
        return mix(functions, weights)(completions=texts, answer=["72"] * len(texts))
    except ValueError:
        return "ValueError"


def same_pay(got: Any, wanted: list[float] | str) -> bool | str:
    if callable(got):
        return "The mix returned a function again: call each part, `function(completions=completions, **columns)`."
    return got == wanted if isinstance(wanted, str) or isinstance(got, str) else same_rewards(got, wanted)


check_weighted_mix = Check("{} mixes; the failing parts are caught.", [
    Case(["correctness_reward"], [0.5], [RIGHT, WRONG], gives=[1.0, 0.0],
         hint="Pass the columns on, and multiply each value by the function's weight: 0.5 · 2.0."),
    Case(["correctness_reward", "int_reward"], [1.0, 0.5], [RIGHT, WRONG, "72"], gives=[2.25, 0.25, 0.0],
         hint="Add up the parts for each completion: one number per completion, not one in all."),
    Case(["correctness_reward", "int_reward"], [1.0, -1.0], [RIGHT, WRONG], gives=[1.5, -0.5],
         hint="A weight can be negative, and weights need not add up to 1: do not clip or normalize."),
    Case(["int_reward", "returns_none"], [1.0, 1.0], [RIGHT, WRONG], gives="ValueError",
         hint="A part returned None. Do not count it as 0: raise ValueError."),
    Case(["int_reward", "returns_nan"], [1.0, 1.0], [RIGHT, WRONG], gives="ValueError",
         hint="NaN is a float, so it must be looked for: raise ValueError unless math.isfinite(value)."),
    Case(["int_reward", "returns_inf"], [1.0, 1.0], [RIGHT, WRONG], gives="ValueError",
         hint="A part returned an infinite value, which is not finite either: test with math.isfinite(value)."),
    Case(["int_reward", "returns_one_value"], [1.0, 1.0], [RIGHT, WRONG], gives="ValueError",
         hint="A part returned one value for two completions: compare the lengths before you add."),
], call=pay_by_mix, same=same_pay)


def _worth(correct: list[bool], formatted: list[bool], weight: float, scale: bool,
           spread: Callable[[list[float]], float] = statistics.stdev) -> float:
    deviation = spread([c + weight * f for c, f in zip(correct, formatted, strict=True)])
    return weight / deviation if scale and deviation else weight if deviation else 0.0


check_format_worth = Check("{} groups.", [
    Case([False] * 4, [True, True, False, False], 0.1, gives=1.732,
         hint="This is the example: 0.1 / 0.0577. statistics.stdev divides by n - 1; the mean cancels."),
    Case([False] * 4, [True, True, False, False], 1.0, gives=1.732,
         hint="Rewards and standard deviation both grow with the weight: 1.0 / 0.577."),
    Case([True, False, False, False], [True, True, False, False], 0.1, gives=0.1867,
         hint="The standard deviation is that of all rewards, correct ones included: 1.1, 0.1, 0 and 0."),
    Case([True, True, False, False], [True, False, True, False], 0.5, gives=0.7746,
         hint="Compare completions that are equally correct: correctness is not part of the format's worth."),
    Case([True, False, False, False], [True, True, False, False], 0.1, False, gives=0.1,
         hint="Without scaling the difference of the rewards remains: the weight."),
    Case([False] * 4, [True] * 4, 0.5, gives=0.0, hint="All rewards are equal: return 0.0, do not divide by 0."),
    Case([False] * 4, [True] * 4, 0.5, False, gives=0.0,
         hint="All rewards are equal: without scaling, too, this group teaches nothing."),
], wrong=[
    Wrong(lambda correct, formatted, weight, scale=True: weight,
          "That is the difference of the rewards. With `scale` it is divided by the standard deviation."),
    Wrong(lambda correct, formatted, weight, scale=True: _worth(correct, formatted, weight, scale, statistics.pstdev),
          "You divided by n in the standard deviation: statistics.stdev divides by n - 1, as GRPO does."),
    Wrong(lambda correct, formatted, weight, scale=True: _worth([False] * len(correct), formatted, weight, scale),
          "You took the standard deviation of the format's part alone: take that of all rewards of the group."),
    Wrong(lambda correct, formatted, weight, scale=True: _worth(correct, formatted, weight, True),
          "You always divide by the standard deviation: look at `scale`."),
], same=lambda got, wanted: abs(float(got) - wanted) < 0.01)  # TRL adds 1e-4 to a standard deviation
