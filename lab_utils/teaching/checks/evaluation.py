"""Self-checks of the notebook "Evaluation"."""

from .runner import Case, Check, close

check_pass_at_k = Check("{} cases, unbiased.", [
    Case(n=4, c=1, k=1, gives=0.25, hint="One draw: the share of correct samples, c / n."),
    Case(n=4, c=1, k=2, gives=0.5, hint="Draw without replacement: 3 of 6 pairs hit. 1 - (1 - c/n)**k "
         "draws with replacement."),
    Case(n=4, c=0, k=3, gives=0.0, hint="No sample is correct."),
    Case(n=4, c=4, k=2, gives=1.0, hint="All samples are correct."),
    Case(n=8, c=3, k=6, gives=1.0, hint="Only 5 are wrong, so 6 draws cannot miss. math.comb(5, 6) is 0, as needed."),
    Case(n=8, c=2, k=4, gives=11 / 14, hint="1 - C(n - c, k) / C(n, k) = 1 - 15 / 70."),
    Case(n=1000, c=10, k=100, gives=0.6531, hint="Large n: math.comb stays exact, factorials as floats overflow."),
], call=lambda pass_at_k, n, c, k: pass_at_k(n, c, k), same=close)

check_first_verdict = Check("{} responses.", [
    Case("3 + 7 = 10, 10 + 25 = 35 no\n25 + 7 = 32, 32 + 3 = 35 yes", gives="no", hint="The first one counts."),
    Case("7 * 6 = 42, 42 + 3 = 45 yes", gives="yes", hint="The first attempt can hit."),
    Case("7 * 6 = 42, 42 + 3 = 45", gives=None, hint="Without a verdict return None: nothing was checked."),
    Case("not one of these, nobody knows: 42 yes", gives="yes", hint="Match whole words: 'not' only begins with 'no'."),
    Case("", gives=None, hint="An empty response has no verdict: return None."),
])
