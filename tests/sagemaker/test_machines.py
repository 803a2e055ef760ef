"""Jobs of two machines, emulated on the loopback interface: every machine has its own /opt/ml.

What S3 does between them is done here: the checkpoints of all machines become one folder.
"""

import shutil
import socket
import time
from pathlib import Path

import numpy as np
import process_runs
import pytest
import torch
import yaml
from account import PLACE

from lab_utils.runs import RunDirectory
from lab_utils.sagemaker import container, emulation

pytest.importorskip("sagemaker.train", reason="the SageMaker SDK is not installed: setup/requirements/sagemaker.txt")

from lab_utils.sagemaker.job import TrainingJob, training_request  # noqa: E402

pytestmark = [pytest.mark.component, pytest.mark.timeout(900)]  # several processes import torch and TRL at once

FAST = ("sft.max_steps=2", "grpo.max_steps=4", "grpo.max_completion_length=32", "task.train_limit=32",
        "tracking.tensorboard=false")
TALK = """
import time, torch
torch.distributed.init_process_group("gloo")
for step in range(1, 1000):
    torch.distributed.all_reduce(torch.ones(1))
    if torch.distributed.get_rank() == 0:
        print(f"step {step}", flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def recorded(folder: Path, script: str | None = None, processes: int = 1) -> tuple[dict, Path]:
    """Return the request of a job on two machines with `processes` each, and the folder that stands for S3."""
    job = TrainingJob(recipe="countdown-grpo", overrides=FAST, evaluate=False, hardware="smoke", instances=2, **PLACE)
    request = training_request(job, folder)
    assert request["ResourceConfig"]["InstanceCount"] == 2
    (description,) = folder.rglob("job.yaml")
    description.write_text(yaml.safe_dump(yaml.safe_load(description.read_text()) | {"processes": processes}))
    if script is not None:
        (description.parent / "scripts" / "train.py").write_text(script)
    return request, folder


def finish(machines: list[emulation.EmulatedJob], timeout: float = 600) -> None:
    for machine in machines:
        machine.wait(timeout)
        assert machine.exit_status == 0 and machine.failure is None, machine.log[-3000:]


def test_two_machines_give_the_numbers_of_one_process(tmp_path):
    """Two processes on each, the same batches: tests/training/test_processes.py says what cannot be equal."""
    source = Path(process_runs.__file__).read_text(encoding="utf-8")
    whole = "run_all(Path(sys.argv[1]))"
    assert whole in source
    script = source.replace(whole, "run_all(Path(sys.argv[sys.argv.index('--output-dir') + 1]))")
    machines = emulation.start_machines(*recorded(tmp_path / "s3", script, processes=2), tmp_path / "machines")
    process_runs.run_all(tmp_path / "one")
    finish(machines)
    first, second = machines
    for stage in ("sft", "grpo", "ppo"):
        one, four = (RunDirectory(folder / stage).metrics() for folder in (tmp_path / "one", first.checkpoints_dir))
        for name in {"loss", "grad_norm", "reward", "accuracy", "value_loss"} & set(one.columns):
            np.testing.assert_allclose(four[name], one[name], rtol=1e-4, atol=1e-5, err_msg=f"{stage} {name}")
        expected = torch.load(tmp_path / "one" / f"{stage}.0.pt")["weights"]
        ranks = [torch.load(machine.checkpoints_dir / f"{stage}.{rank}.pt")["weights"]
                 for machine, rank in ((first, 0), (first, 1), (second, 2), (second, 3))]
        for name, weight in expected.items():
            torch.testing.assert_close(ranks[0][name], weight, atol=2e-5, rtol=1e-3, msg=f"{stage} {name}")
            assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks), "the machines have stayed in step"
        models = [machine.checkpoints_dir / stage / "model" / "model.safetensors" for machine in machines]
        assert models[0].read_bytes() == models[1].read_bytes()


def test_sigterm_on_all_machines_saves_and_the_restarted_job_resumes(tmp_path):
    job = recorded(tmp_path / "s3")
    machines = emulation.start_machines(*job, tmp_path / "first")
    machines[0].watch(until="metrics grpo step=2 ")
    for machine in machines:
        machine.interrupt()
    finish(machines)
    assert not any(path.is_file() for machine in machines for path in machine.model_dir.rglob("*"))
    assert "\nmetrics " not in machines[1].log, "only the first process speaks"

    in_s3 = tmp_path / "in_s3"
    for machine in machines:
        shutil.copytree(machine.checkpoints_dir, in_s3, dirs_exist_ok=True)
    random_states = sorted(path.name for path in (in_s3 / "grpo/checkpoints").glob("checkpoint-*/rng_state_*.pth"))
    assert set(random_states) == {f"rng_state_{rank}.pth" for rank in range(2)}, "of each machine"

    again = emulation.start_machines(*job, tmp_path / "second", checkpoints=in_s3)
    finish(again)
    first, second = again
    assert "metrics sft" not in first.log and "metrics grpo step=1 " not in first.log, "what is trained is not repeated"
    run = RunDirectory(first.output_dir / "grpo")
    assert run.metrics()["step"].tolist() == [1, 2, 3, 4]
    assert (first.model_dir / "model.safetensors").exists()
    assert not any(path.is_file() for folder in (second.model_dir, second.output_dir) for path in folder.rglob("*"))


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_a_killed_machine_ends_the_job_on_the_other_with_a_reason(tmp_path, killed):
    machines = emulation.start_machines(*recorded(tmp_path / "s3", TALK), tmp_path / "machines")
    machines[0].watch(until="step 5\n")
    machines[killed].kill()
    started, other = time.monotonic(), machines[1 - killed]
    other.wait(120)
    assert other.exit_status == 1 and time.monotonic() - started < 60
    assert f"127.0.0.{2 - killed} lost the connection to another machine of the job (127.0.0.{1 + killed})" in (
        other.failure.splitlines()[0])


def test_a_machine_waits_for_the_names_of_the_others(monkeypatch):
    answers = [OSError(), "10.0.0.1", OSError(), OSError(), "10.0.0.2"]

    def gethostbyname(name):
        if isinstance(answer := answers.pop(0), OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "gethostbyname", gethostbyname)
    monkeypatch.setattr(container.time, "sleep", lambda seconds: None)
    options = container.torchrun(4, ["algo-1", "algo-2"], "algo-2")
    assert not answers and {"--nnodes=2", "--node-rank=1", "--nproc-per-node=4", "--master-addr=algo-1"} < set(options)
    monkeypatch.setattr(container, "START_SECONDS", -1)
    answers += [OSError()]
    with pytest.raises(container.JobError, match="The machine algo-1 of the job did not start"):
        container.torchrun(1, ["algo-1", "algo-2"], "algo-1")
