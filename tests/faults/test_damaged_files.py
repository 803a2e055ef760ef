"""Data, settings and results that cannot be read: one message that names the place and the fix, in bounded time."""

import errno
import json
import re

import pytest
from safetensors import SafetensorError

from lab_utils import WorkshopError, exit_status
from lab_utils.config import ConfigError, load, read_config
from lab_utils.evaluation import Evaluation
from lab_utils.runs import RunDirectory, RunDirectoryError
from lab_utils.tasks import RowError, load_task
from lab_utils.training import sft

GOOD = b'{"nums": [3, 7, 25], "target": 46}\n'


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line, problem", [
    (b'{"nums": [3, 7], "target": 10, "note": "caf\xe9"}', "not valid UTF-8. Save the file as UTF-8"),
    (GOOD.decode().encode("utf-16"), "not valid UTF-8"),
    (GOOD.decode().encode("utf-16-le"), "not valid JSON"),
    (b'{"nums": [3, 7], \x00"target": 10}', "not valid JSON"),
    (b'{"nums": [3, 7], "target": ' + b"9" * 5000 + b"}", "9… does not fit into 64 bits"),
    (b'{"nums": [3, 7], "target": 9223372036854775808}', "9223372036854775808 does not fit into 64 bits"),
    (b'{"nums": [3, 7], "target": NaN}', "NaN does not fit"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"nums": [3, 7], "target": 10, "note": "\\ud800"}', "not valid UTF-8"),
    (b'{"nums": [3, 7], "target": 10, "note": "' + b"x" * 10_000_000 + b'"}', "has 10,000,043 bytes"),
])
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, problem):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(GOOD + line + b"\n")
    with pytest.raises(RowError, match=f"rows.jsonl, line 2: .*{problem}") as caught:
        load_task("countdown").dataset("train", source=str(source))
    assert len(str(caught.value)) < 500


def test_the_mark_that_windows_editors_put_first_is_accepted(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"))
    assert load_task("countdown").dataset("train", source=str(source))["target"] == [46]


def test_columns_of_several_types_are_named(tmp_path):
    source = tmp_path / "rows.jsonl"
    row = {"question": "1 + 1?", "answer": "2"}
    source.write_text("".join(json.dumps(row | {"hurried": value}) + "\n" for value in (1, [2])))
    with pytest.raises(RowError, match="do not form a table, because of .*same type in every row"):
        load_task("gsm8k").dataset("train", source=str(source))


LEVELS = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]
BOMB = "\n".join(["l0: &l0 [x, x]", *LEVELS])
MERGES = "l0: &l0 {x: 1}\n" + "\n".join(
    f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 10))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content, problem", [
    (b"[" * 20_000, "is not valid YAML"),
    (b"task: caf\xe9", "not text in UTF-8"),
    (b"seed: 2024-13-45", "is not valid YAML"),
    (b"#" * 200_000, "100,000 bytes"),
    (BOMB.encode(), "no key l0"),
    (f"{BOMB}\nstages: *l9\ntask: {{name: *l9}}\nseed: *l9\nrewards: {{x: *l9}}".encode(), "stages"),
    (MERGES.encode(), "merge keys .* are not supported"),
    (b"&a {task: *a}", "task"),
    (b"- 1", "contains"),
])
def test_yaml_that_cannot_be_read_is_a_short_message_in_bounded_time(tmp_path, content, problem):
    (tmp_path / "mine.yaml").write_bytes(content)
    for read in (lambda: load(tmp_path / "mine.yaml", "smoke"), lambda: read_config(tmp_path / "mine.yaml")):
        with pytest.raises(ConfigError, match=problem) as caught:
            read()
        assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("setting", [
    "seed=4294967296", "seed=2024-01-01", "seed=2024-13-45", "sft.learning_rate=.inf", "sft.learning_rate=1e-300",
    "seed=" + "9" * 5000,
    "task.name=" + "[" * 5000, "task.name=[" + "x," * 9999 + "]"])
def test_odd_settings_are_a_message(setting):
    with pytest.raises(ConfigError) as caught:
        load("countdown-grpo", "smoke", [setting])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("error, problem", [
    (OSError(errno.ENOSPC, "No space left on device", "eval.json"), "The disk is full .* free space, then give"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "The disk is full .* free space, then give"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "run/metrics.jsonl"), "run/metrics.jsonl cannot be used"),
    (OSError(errno.EROFS, "Read-only file system", "run/.lock"), "run/.lock cannot be used .Read-only file system"),
])
def test_what_the_disk_refuses_is_a_message_of_every_script(error, problem, capsys):
    def main():
        raise error

    assert exit_status(main) == 2
    assert re.search(problem + ".*same command again", capsys.readouterr().err)
    error = FileNotFoundError(errno.ENOENT, "No such file", "a bug of ours")
    with pytest.raises(FileNotFoundError):
        exit_status(main)


@pytest.mark.component
def test_a_length_that_leaves_no_demonstration(tmp_path):
    with pytest.raises(ConfigError, match="sft.max_length = 64 leaves no demonstration.*set it to"):
        sft.train(load("countdown-grpo", "smoke", {"sft.max_length": 64}), tmp_path / "sft")


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(load("countdown-grpo", "smoke"), tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"examples": [], "settings": {}}', "[" * 100_000,
                                     '{"examples": [{"completions": [{"correct": 1}]}], "settings": {}}', "\x00"])
def test_a_damaged_evaluation_says_how_to_repeat_it(run, content):
    run.evaluation_path.write_text(content)
    with pytest.raises(WorkshopError, match="eval.json is damaged.*evaluate again with python scripts/evaluate.py"):
        Evaluation.load(run.evaluation_path)


@pytest.mark.parametrize("line", ["{", "[]", "{}", "7", '{"step": null}', "[" * 100_000, "\x00\x00"])
def test_a_damaged_line_of_the_metrics_is_named(run, line):
    run.append_metrics(1, {"loss": 1.0})
    with open(run.metrics_path, "a") as file:
        file.write(line + "\n")
    for use in (run.metrics, lambda: run.discard_after(1)):
        with pytest.raises(RunDirectoryError, match="metrics.jsonl, line 2 is damaged.*remove that line"):
            use()
    run.metrics_path.write_text("")
    with pytest.raises(RunDirectoryError, match="has no logged step"):
        run.metrics()


@pytest.mark.parametrize("content", ["", "[", "seed: [", "recipe: countdown-grpo"])
def test_a_damaged_configuration_is_a_message_and_can_be_written_again(run, content):
    config = run.config()
    run.config_path.write_text(content)
    with pytest.raises(ConfigError, match="config.yaml|is missing"):
        run.config()
    run.config_path.unlink()
    assert RunDirectory.create(config, run.path, resume=True).config() == config
