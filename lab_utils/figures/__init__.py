"""Every figure of the workshop, drawn from run directories and evaluations.

Importing this package sets the workshop's matplotlib style. Each `plot_*` function returns the Figure, which a
notebook shows when the call ends a cell, and saves it if `path` is given. A method has the same color in all figures.
"""

from .completions import browse_completions
from .evaluation import (
    plot_accuracy_bars,
    plot_attempts,
    plot_cost,
    plot_differences,
    plot_pass_at_k,
    plot_problem_accuracy,
    plot_rates,
    plot_rewards,
    plot_story,
)
from .lessons import (
    OVERVIEW,
    plot_advantages,
    plot_loss_mask,
    plot_overview,
    plot_panel,
    plot_pipeline,
    plot_side_by_side,
    plot_token_values,
    plot_value_changes,
)
from .search import plot_search
from .style import INK, METHOD_COLORS, OTHER_COLORS
from .training import plot_against_tokens, plot_log, plot_reward_components, plot_sft, plot_training
