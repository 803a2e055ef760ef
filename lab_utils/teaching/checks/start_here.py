"""Self-check of the notebook "Start here"."""

from .runner import Case, Check

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
