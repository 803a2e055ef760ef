"""Evaluation: ask a model every question several times, judge its answers, compare models on the same questions."""

from .asking import evaluate, evaluate_run, judge
from .results import Evaluation, format_results, results_table, rewards_table
from .statistics import (
    McNemar,
    PairedDifference,
    bootstrap_interval,
    maj_at_k,
    mcnemar,
    paired_bootstrap,
    pass_at_k,
    wilson_interval,
)
