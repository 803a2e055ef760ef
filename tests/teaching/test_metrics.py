"""The table of metrics explains everything that a run has logged, and shows the values of the steps that it names."""

from lab_utils import REPOSITORY
from lab_utils.runs import RunDirectory
from lab_utils.teaching.metrics import MEANINGS, metrics_table


def test_every_metric_of_a_run_is_explained_with_its_values_at_a_quarter_and_at_the_end():
    run = RunDirectory(REPOSITORY / "notebooks/recorded/runs/healthy")
    metrics, table = run.metrics().set_index("step"), metrics_table(run)
    assert set(table.index) == set(metrics.columns) and (table["meaning"] != "").all()
    assert max(map(len, MEANINGS.values())) <= 50  # pandas cuts off longer ones
    end = metrics.index[-1]
    quarter = -(-end // 4)
    assert list(table.columns) == ["meaning", f"step {quarter}", f"step {end}"]
    for step in (quarter, end):
        assert table.loc["accuracy", f"step {step}"] == f"{metrics.loc[step, 'accuracy']:.3g}"
        assert table.loc["num_tokens", f"step {step}"] == f"{metrics.loc[step, 'num_tokens']:,.0f}"


def test_a_metric_of_some_steps_has_its_latest_value_and_an_unknown_one_no_meaning(tmp_path):
    run = RunDirectory(tmp_path)
    for step in range(1, 9):
        run.append_metrics(step, {"mine": step / 10, **({"probe/accuracy": step} if step in (1, 5) else {})})
    table = metrics_table(run)
    assert table.loc["probe/accuracy", ["step 2", "step 8"]].tolist() == ["1", "5"]
    assert table.loc["mine"].tolist() == ["", "0.2", "0.8"]
