"""Self-checks of the notebook "What else than RL?"."""

import itertools
import math

from ...tasks.answers import parse_number
from .runner import Case, Check, Wrong, close


def _vote(answers, key=lambda answer: answer if (number := parse_number(answer)) is None else number,
          none_votes=False, choose=lambda ballots: max(ballots, key=len)):
    ballots = {}
    for answer in answers:
        if answer is not None or none_votes:
            ballots.setdefault(None if answer is None else key(answer), []).append(answer)
    return choose(list(ballots.values()))[0] if ballots else None


check_vote = Check("{} elections.", [
    Case(["9", "72", "72"], gives="72", hint="72 has two votes and 9 has one."),
    Case([None, None, None, "8"], gives="8", hint="A response without an answer does not vote."),
    Case(["9", "9", "72", "72.0", "$72"], gives="72",
         hint="72, 72.0 and $72 are one number: `parse_number` makes them equal. Return it as it was written first."),
    Case(["7", "5", "5", "7"], gives="7", hint="A tie goes to the answer that came first."),
    Case(["x = 2", "0", "0.0"], gives="0",
         hint="parse_number('0') is 0, which is false in an `if`: compare with None instead."),
    Case(["3 + 4", "4 + 3", "7", "7"], gives="7",
         hint="parse_number('3 + 4') is None: an answer that is not a number votes as text."),
    Case([None, None], gives=None, hint="If no response has an answer, return None."),
], wrong=[
    Wrong(lambda answers: _vote(answers, none_votes=True),
          "You let None vote. Several responses without an answer do not agree on anything."),
    Wrong(lambda answers: _vote(answers, key=str),
          "You count texts. 72 and 72.0 are the same answer and vote together: count by `parse_number(answer)`."),
    Wrong(lambda answers: _vote(answers, choose=lambda ballots: sorted(ballots, key=len)[-1]),
          "A tie goes to the answer that came first. `max` keeps the first of equals; the end of a sorted list does "
          "not."),
    Wrong(lambda answers: _vote(answers, key=parse_number),
          "parse_number is None for an answer that is not a number, so all of those vote together. Let them vote as "
          "text."),
    Wrong(lambda answers: _vote(answers, key=lambda answer: parse_number(answer) or answer),
          "`parse_number(answer) or answer` takes the text for the number 0, because 0 is false: test `is None`."),
])


def _best_of_n(scores, correct, n, chance=lambda below, total, n: math.comb(below, n - 1) / math.comb(total, n),
               reverse=False):
    ranked = [flag for _, flag in sorted(zip(scores, correct, strict=True), reverse=reverse)]
    return sum(flag * chance(below, len(ranked), n) for below, flag in enumerate(ranked))


def _exactly(got, wanted):
    return close(got, wanted) or abs(got - wanted) < 0.05 and "Close, but not exact: count the draws."


check_best_of_n = Check("{} judges.", [
    Case([0.3, 0.1, 0.2], [0, 0, 1], 2, gives=1 / 3,
         hint="Three pairs. The correct response (0.2) has the highest score of only one, that with 0.1."),
    Case([0.3, 0.1, 0.2], [0, 0, 1], 1, gives=1 / 3, hint="With n = 1 the judge has no choice: the share of correct."),
    Case([5.0, -1.0, 2.0, 0.0], [1, 0, 0, 1], 4, gives=1.0, hint="n = 4 takes all four, and the highest is correct."),
    Case([5.0, -1.0, 2.0, 0.0], [0, 1, 1, 1], 3, gives=0.25,
         hint="A judge that prefers the one wrong response: only the draw without it gives a correct one."),
    Case([0.9, 0.8, 0.1, 0.4], [1, 1, 0, 0], 2, gives=5 / 6,
         hint="Six pairs. Five hold a correct response, and this judge always prefers it."),
], wrong=[
    Wrong(lambda scores, correct, n: _best_of_n(scores, correct, n, reverse=True),
          "This chooses the response with the *lowest* score. Rank from the lowest to the highest."),
    Wrong(lambda scores, correct, n: 1 - math.comb(len(correct) - sum(correct), n) / math.comb(len(correct), n),
          "This is pass@n, as if the judge knew which response is correct. Use the scores."),
    Wrong(lambda scores, correct, n: float(max(zip(scores, correct, strict=True))[1]),
          "You took the best of all, or of the first n only. Average over all draws of n."),
    Wrong(lambda scores, correct, n: _best_of_n(scores, correct, n, lambda below, total, n: math.comb(below, n)
                                                / math.comb(total, n)),
          "The chosen response is one of the n that are drawn, so only the other n - 1 lie below it."),
    Wrong(lambda scores, correct, n: sum(flag for _, flag in sorted(zip(scores, correct, strict=True))[-n:]) / n,
          "That is the share of correct ones among the n highest. The judge sees a random n, and returns one of them."),
    Wrong(lambda scores, correct, n: _best_of_n(scores, correct, n, lambda below, total, n: ((below + 1) / total)**n
                                                - (below / total)**n),
          "You draw with replacement. A response cannot be drawn twice: count with math.comb."),
], same=_exactly)


def _make_pairs(texts, correct, most, distinct=lambda texts: list(dict.fromkeys(texts)), match=zip):
    right = distinct([text for text, flag in zip(texts, correct, strict=True) if flag])
    wrong = distinct([text for text, flag in zip(texts, correct, strict=True) if not flag])
    return list(match(right, wrong))[:most]


check_make_pairs = Check("{} problems.", [
    Case(["a", "b", "c"], [False, True, False], 4, gives=[("b", "a")],
         hint="One correct response makes one pair: (correct, wrong), with the first wrong one."),
    Case(["a", "b", "c", "d"], [True, False, True, False], 4, gives=[("a", "b"), ("c", "d")],
         hint="The first correct text with the first wrong one, the second with the second. A `set` loses the order."),
    Case(["a", "a", "b", "b", "c"], [True, True, False, False, False], 4, gives=[("a", "b")],
         hint="The same text twice is one response: remove repetitions first."),
    Case(["a", "b"], [True, True], 4, gives=[], hint="All correct: there is nothing to prefer."),
    Case(["a", "b", "c", "d", "e", "f"], [True, True, True, False, False, False], 2, gives=[("a", "d"), ("b", "e")],
         hint="At most `most` pairs, and in the order of the texts: a `set` loses it."),
], wrong=[
    Wrong(lambda texts, correct, most: [(wrong, right) for right, wrong in _make_pairs(texts, correct, most)],
          "The other way round: DPO raises the probability of the first of each pair."),
    Wrong(lambda texts, correct, most: _make_pairs(texts, correct, most, match=itertools.product),
          "You pair every correct response with every wrong one. Then a problem with four of each has sixteen pairs, "
          "and outweighs the others. Use no response twice."),
    Wrong(lambda texts, correct, most: _make_pairs(texts, correct, most, distinct=list),
          "You use the same text twice. A model repeats itself, and a repeated pair counts double."),
    Wrong(lambda texts, correct, most: _make_pairs(texts, correct, len(texts)),
          "You return more than `most` pairs of one problem."),
    Wrong(lambda texts, correct, most: _make_pairs(texts, correct, 1),
          "You make one pair per problem. Here up to `most` are wanted: the second correct with the second wrong, ..."),
], same=lambda got, wanted: list(map(tuple, got)) == wanted)
