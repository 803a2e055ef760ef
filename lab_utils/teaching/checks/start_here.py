"""Self-checks of the notebook "Start here"."""

from ...tasks.expressions import evaluate, numbers_used
from .runner import Case, Check, Wrong

check_solves = Check("your judge agrees with ours on {} expressions.", [
    Case("(7 * 6) + 3", [3, 6, 7], 45, gives=True, hint="42 + 3 is 45. The numbers can come in any order."),
    Case("(7 * 6) + 3", [3, 6, 7], 46, gives=False, hint="Its value is 45, not 46."),
    Case("7 * 6", [3, 6, 7], 42, gives=False, hint="3 is not used. Use every number."),
    Case("7 * 6 + 7", [3, 6, 7], 49, gives=False, hint="7 is used twice and 3 not at all."),
    Case("5 * 2", [2, 5, 5], 10, gives=False, hint="There are two fives to use. Compare sorted lists, not sets."),
    Case("(1 / 49) * 49", [1, 49, 49], 1, gives=True, hint="Exactly 1: `evaluate` is exact, floats are not."),
    Case("7 * 6 + 3 = 45", [3, 6, 7], 45, gives=False,
         hint="An expression has no '=': catch ExpressionError, and only that error, and return False."),
    Case("banana", [3, 6, 7], 45, gives=False, hint="Not an expression: catch ExpressionError and return False."),
])


def _value_first(answer: str | None, nums: list[int], target: int) -> str:
    if answer is None:
        return "no answer"
    if evaluate(answer) != target:
        return "wrong value"
    return "correct" if sorted(numbers_used(answer)) == sorted(nums) else "wrong numbers"


check_verdict = Check("your verdicts agree with ours on {} answers.", [
    Case("(7 * 6) + 3", [3, 6, 7], 45, gives="correct", hint="The numbers and the value are as asked."),
    Case(None, [3, 6, 7], 45, gives="no answer", hint="None means that no answer was found: test for it first."),
    Case("7 * 6 + 3 = 45", [3, 6, 7], 45, gives="not an expression",
         hint="An expression has no '=': catch ExpressionError."),
    Case("7 * 6 + 4", [3, 6, 7], 46, gives="wrong numbers", hint="The value is 46, but 4 was not given."),
    Case("7 * 6 - 3", [3, 6, 7], 45, gives="wrong value", hint="The numbers are the given ones; the value is 39."),
    Case("7 * 6", [3, 6, 7], 45, gives="wrong numbers",
         hint="Numbers and value are both wrong: return the reason that comes first in the list."),
    Case("7 / (6 - 6)", [6, 6, 7], 10, gives="not an expression",
         hint="A division by zero cannot be calculated: `evaluate` raises ExpressionError, `numbers_used` does not."),
    Case("7 / 0", [3, 6, 7], 10, gives="not an expression",
         hint="It cannot be calculated, and that comes before the numbers in the list: call `evaluate` first, too."),
    Case("", [3, 6, 7], 45, gives="not an expression", hint="An empty answer was found, but it is no expression."),
], wrong=[
    Wrong(lambda answer, nums, target: answer == "(7 * 6) + 3", "Return the verdict as text, not True or False."),
    Wrong(_value_first, "`evaluate` raises ExpressionError for a text that cannot be calculated: catch it."),
    Wrong(lambda answer, nums, target: "no answer" if answer is None else "not an expression" if "=" in answer
          else "correct" if evaluate(answer) == target else "wrong value",
          "You return no \"wrong numbers\": compare the sorted numbers before the value."),
])
