"""Self-checks of the exercises: `check_xyz(your_function)` prints OK or a hint, and returns True or False.

Each module holds the cases and hints of one notebook as data; `runner` runs them, and its docstring shows their form.
To add an exercise, add its check to the notebook's module, and its name here.
"""

from .dataset_formatting import check_extract_hash_answer, check_labels_of_conversation, check_make_labels
from .diagnosing_runs import check_diagnosis, check_first_alarm, check_scatter
from .evaluation import check_first_verdict, check_pass_at_k, check_redrawn_differences
from .grpo_from_scratch import (
    check_aggregate,
    check_clipped_loss,
    check_group_advantages,
    check_kl_term,
    check_token_logps,
    check_train_step,
)
from .grpo_training import check_expected_without_signal, check_failed_and_given_up, check_share_without_signal
from .policy_gradients import check_gradient_estimates, check_leave_one_out
from .ppo_training import check_gae, check_perfect_critic
from .results import check_conclude, check_problems_needed
from .reward_design import (
    check_correctness_reward,
    check_format_worth,
    check_strict_format_reward,
    check_weighted_mix,
)
from .reward_hacking import check_largest_bonus, check_share_to_right, check_short_and_right_reward
from .sagemaker_training import check_billed_minutes, check_logged_values
from .serving_and_sharing import check_merge_lora, check_responses_at_once
from .sft_warmup import check_completion_loss, check_live_share
from .start_here import check_solves, check_verdict
from .what_else import check_best_of_n, check_make_pairs, check_vote
