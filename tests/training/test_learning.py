"""One short run that must learn: GRPO teaches the tiny model to write the steps of word problems."""

import pytest

from lab_utils import config as configuration
from lab_utils.evaluation import evaluate_run, paired_bootstrap
from lab_utils.training import grpo, sft

pytestmark = [pytest.mark.component, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_grpo_raises_accuracy_on_held_out_word_problems(tmp_path):
    config = configuration.load("gsm8k-grpo", "cpu", {
        "seed": 11, "sft.max_steps": 60, "sft.per_device_train_batch_size": 16, "grpo.max_steps": 6,
        "grpo.learning_rate": 3e-4, "grpo.lr_scheduler_type": "constant", "grpo.per_device_train_batch_size": 128,
        "grpo.probe_rollouts": 0, "task.test_limit": 80, "evaluation.num_samples": 4, "evaluation.max_new_tokens": 128})
    first = sft.train(config, tmp_path / "sft")
    second = grpo.train(config, tmp_path / "grpo", model=first.model_dir)
    before, after = evaluate_run(first, config), evaluate_run(second, config)
    assert before.format_rate > 0.9 and 0.1 < before.accuracy < 0.5, "format learned, headroom left"
    difference = paired_bootstrap(before.per_problem, after.per_problem)
    assert difference.low > 0.1, difference
    assert after.mean_attempts > before.mean_attempts + 0.3, "it is right more often because it writes the steps"
