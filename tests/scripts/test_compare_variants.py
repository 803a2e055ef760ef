"""scripts/compare_variants.py: variants of GRPO on equal tokens, with the learning rates of the default."""

import json

import compare_variants
import numpy as np
import pandas as pd
import pytest
from measure_learning import generated_tokens

from lab_utils.config import ConfigError, load, with_overrides
from lab_utils.runs import RunDirectory


def test_every_variant_is_a_valid_change_of_the_default():
    config = load("countdown-grpo", "cpu")
    variants = compare_variants.variants(config)
    assert all(with_overrides(config, changes).grpo != config.grpo for changes in variants.values())

    rewards, size, group = variants["leave-one-out"]["rewards"], config.grpo.num_generations, [1.0, 0.0, 0.0, 1.0] * 4
    weight = rewards["equation_reward"] / config.rewards["equation_reward"]
    own_mean = [reward - sum(group) / size for reward in group]
    others_mean = [reward - (sum(group) - reward) / (size - 1) for reward in group]
    assert [weight * advantage for advantage in own_mean] == pytest.approx(others_mean)
    assert rewards.keys() == config.rewards.keys() and size == len(group)


@pytest.mark.component
def test_variants_are_measured_once_on_equal_terms_and_only_with_equal_settings(tmp_path, monkeypatch):
    published = compare_variants.variants
    names = ["SFT", "GRPO", "the same", "overlong filtering", "2 passes", "2 passes, GSPO"]
    monkeypatch.setattr(compare_variants, "variants", lambda config: {
        name: published(config).get(name, {}) for name in names[2:]})
    arguments = ["--hardware", "smoke", "--seeds", "3", "--output-dir", str(tmp_path), "--set", "task.test_limit=4",
                 "--set", "grpo.max_steps=3", "--set", "grpo.probe_rollouts=0"]
    compare_variants.main(arguments)
    path = tmp_path / "variants.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [row["variant"] for row in content["rows"]] == [row["variant"] for row in content["table"]] == names

    runs = tmp_path / "countdown" / "seed-3"
    default, same = RunDirectory(runs / "grpo"), RunDirectory(runs / "variants" / "the-same")
    columns = ["step", "learning_rate", "reward", "completions/mean_length"]
    pd.testing.assert_frame_equal(default.metrics()[columns], same.metrics()[columns], rtol=1e-4)
    of_the_same = content["summaries"][2]
    assert of_the_same["difference"] == 0 and of_the_same["seeds"] == [0] and of_the_same["clipped"] == 0

    two_passes = RunDirectory(runs / "variants" / "2-passes")
    tokens = generated_tokens(two_passes)
    metrics = two_passes.metrics()
    assert len(metrics) == 2 * len(tokens), "both passes over the last rollout are trained"
    rates = metrics["learning_rate"].to_numpy().reshape(-1, 2)
    before = [[0, *generated_tokens(run).iloc[:-1]] for run in (two_passes, default)]  # tokens before each rollout
    assert rates[:, 0] == pytest.approx(np.interp(*before, default.metrics()["learning_rate"]))
    assert (rates[:, 0] == rates[:, 1]).all()
    budget, longest = generated_tokens(default).iloc[-1], tokens.diff().max()
    assert abs(tokens.iloc[-1] - budget) <= max(longest, tokens.iloc[0]) / 2
    with_both = {row["variant"] for row in content["summaries"] if "from_two_passes" in row}
    assert with_both == {"2 passes, GSPO"}

    lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(names) and path.with_suffix(".png").stat().st_size > 0
    models = sorted(tmp_path.glob("countdown/**/model/model.safetensors"))
    before = [model.stat().st_mtime_ns for model in models]
    compare_variants.main(arguments)
    assert [model.stat().st_mtime_ns for model in models] == before and len(models) == len(names)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    with pytest.raises(ConfigError, match=r"trained with other settings \(grpo.beta\).*another --output-dir"):
        compare_variants.main([*arguments, "--set", "grpo.beta=0.5"])
