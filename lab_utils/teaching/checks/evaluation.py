"""Self-checks of the notebook "Evaluation"."""

import math
import re

from .runner import Case, Check, Wrong, close

check_pass_at_k = Check("{} cases, unbiased.", [
    Case(n=4, c=1, k=1, gives=0.25, hint="One draw: the share of correct samples, c / n."),
    Case(n=4, c=1, k=2, gives=0.5, hint="Draw without replacement: 3 of 6 pairs hit. 1 - (1 - c/n)**k "
         "draws with replacement."),
    Case(n=4, c=0, k=3, gives=0.0, hint="No sample is correct."),
    Case(n=4, c=4, k=2, gives=1.0, hint="All samples are correct: no pair misses, and math.comb(0, 2) is 0."),
    Case(n=8, c=3, k=6, gives=1.0, hint="Only 5 are wrong, so 6 draws cannot miss. math.comb(5, 6) is 0, as needed."),
    Case(n=8, c=2, k=4, gives=11 / 14, hint="1 - C(n - c, k) / C(n, k) = 1 - 15 / 70."),
    Case(n=1000, c=10, k=100, gives=0.6531, hint="Large n: math.comb stays exact, factorials as floats overflow."),
], wrong=[
    Wrong(lambda n, c, k: 1 - (1 - c / n)**k,
          "1 - (1 - c/n)**k puts each draw back. Draw without replacement: 3 of the 6 pairs hold the correct one."),
    Wrong(lambda n, c, k: math.comb(n - c, k) / math.comb(n, k),
          "This is the probability that all draws miss. Return 1 minus it."),
    Wrong(lambda n, c, k: 1 - math.comb(c, k) / math.comb(n, k),
          "C(c, k) counts the draws that hold only correct samples. Count those that hold only wrong ones: n - c."),
    Wrong(lambda n, c, k: float(c > 0), "This is pass@n. One draw of four can miss the correct sample."),
], call=lambda pass_at_k, n, c, k: pass_at_k(n, c, k), same=close)

check_redrawn_differences = Check("{} sets of draws, all paired.", [
    Case([0, 0.5, 1], [1, 0.5, 1], [[0, 0, 2]], gives=[2 / 3],
         hint="Question 0 is drawn twice, so it counts twice: the differences are 1, 1 and 0."),
    Case([0.25, 0.5], [0.5, 1.0], [[0, 0], [1, 1], [0, 1]], gives=[0.25, 0.5, 0.375],
         hint="Return one mean for each draw, in their order."),
    Case([0.5, 0.0, 1.0], [0.0, 0.0, 0.5], [[2, 0, 1]], gives=[-1 / 3],
         hint="after minus before: if `after` is worse, the difference is negative."),
    Case([0.0, 1.0, 0.5, 0.25], [0.5, 1.0, 0.5, 0.75], [[3, 3, 3, 1], [2, 2, 1, 1]], gives=[0.375, 0.0],
         hint="Take the same questions from both lists."),
], wrong=[
    Wrong(lambda before, after, draws: [(sum(after) - sum(before)) / len(before) for _ in draws],
          "You take all questions every time. Take only those of the draw, each as often as it was drawn."),
    Wrong(lambda before, after, draws: [sum(after[i] - before[i] for i in set(draw)) / len(set(draw))
                                        for draw in draws],
          "A question that is drawn twice must count twice: do not make a set of the draw."),
    Wrong(lambda before, after, draws: [sum(before[i] - after[i] for i in draw) / len(draw) for draw in draws],
          "This is before minus after. A gain should be positive."),
    Wrong(lambda before, after, draws: [sum(after[i] - before[i] for i in draw) for draw in draws],
          "This is the sum of the differences. Divide it by the number of questions in the draw."),
    Wrong(lambda before, after, draws: [sum(after[i] for i in draw) / len(draw) - sum(before) / len(before)
                                        for draw in draws],
          "Only `after` is redrawn. A comparison in pairs draws the same questions for both models."),
], same=lambda got, wanted: len(got) == len(wanted) and all(map(close, got, wanted)))

check_first_verdict = Check("{} responses.", [
    Case("3 + 7 = 10, 10 + 25 = 35 no\n25 + 7 = 32, 32 + 3 = 35 yes", gives="no", hint="The first one counts."),
    Case("7 * 6 = 42, 42 + 3 = 45 yes", gives="yes", hint="The first attempt can hit."),
    Case("4 + 1 = 5 yes\n4 - 1 = 3 no", gives="yes", hint="The first one counts, whatever follows."),
    Case("7 * 6 = 42, 42 + 3 = 45", gives=None, hint="Without a verdict return None: nothing was checked."),
    Case("not one of these, nobody knows: 42 yes", gives="yes", hint="Match whole words: 'not' only begins with 'no'."),
    Case("<think>9 - 2 = 7 no</think><answer>9 - 2</answer>", gives="no",
         hint="A verdict can stand right before a tag, as in `no</think>`. split() does not part the two."),
    Case("", gives=None, hint="An empty response has no verdict: return None."),
], wrong=[
    Wrong(lambda text: "yes" if "yes" in text else "no" if "no" in text else None,
          "You ask which of the words occurs. The first one counts: a search often ends with `yes`."),
    Wrong(lambda text: (re.search("yes|no", text) or [None])[0],
          "Match whole words: `not` only begins with `no`. In a regular expression, \\b is the edge of a word."),
    Wrong(lambda text: (re.findall(r"\b(yes|no)\b", text) or [None])[-1], "This is the last verdict."),
    Wrong(lambda text: (re.search(r"\b(yes|no)\b", text) or ["no"])[0],
          "Without a verdict return None: nothing was checked."),
])
