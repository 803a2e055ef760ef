"""Kill training and evaluation at random moments, give the command again, and compare every file in the end.

    FAULTS_KILLS=200 FAULTS_SEED=7 python -m pytest -s tests/faults/test_random_kills.py

The seed is printed, and a table of the kills: for each command, what it was doing when it was killed.
"""

import os
import random
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import COMMANDS, KILLED, contents, differences, run, written

KILLS = int(os.environ.get("FAULTS_KILLS", "12"))
SEED = int(os.environ.get("FAULTS_SEED", random.randrange(10**6)))


def moment(output: Path) -> str:
    """Say what a command was doing when it was killed."""
    names = {path.name.split(".tmp-")[0] for path in output.rglob("*.tmp-*")}
    checkpoints = list(output.rglob("checkpoint-*"))
    if names & {"model", "checkpoint"} or (output / "export").exists():
        return "saving a model"
    if list(output.rglob("model")):
        return "evaluating"
    if not all((path / "trainer_state.json").exists() for path in checkpoints):
        return "saving a checkpoint"
    return "training" if checkpoints else "before a checkpoint"


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * KILLS)  # on a busy machine; alone it takes 2 seconds a kill
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_command_killed_at_random_moments_and_given_again_leaves_the_files_of_an_undisturbed_one(tmp_path):
    """Half of the moments are drawn from a command's time, half from its writes, which take little of that time."""
    draw, output = random.Random(SEED), tmp_path / "output"
    print(f"\nFAULTS_SEED={SEED} FAULTS_KILLS={KILLS}")
    whole, seconds, writes = {}, {}, {}
    for name in COMMANDS:
        begun = time.monotonic()
        assert run(name, output) == 0
        seconds[name], writes[name], whole[name] = time.monotonic() - begun, written.value, contents(output)
        output.rename(tmp_path / name)
    kills, tries = [], 0
    while len(kills) < KILLS:
        name, tries = list(COMMANDS)[tries % len(COMMANDS)], tries + 1
        for share in (1.0, 0.6, None):  # less is left to do when the command is given again; the third time it may end
            when = {}
            if share and len(kills) < KILLS:
                when = draw.choice([{"seconds": draw.uniform(0, share * seconds[name])},
                                    {"writes": draw.randrange(int(share * writes[name]))}])
            status = run(name, output, **when)
            if status != KILLED:
                break
            kills.append((name, moment(output)))
        assert status == 0, f"FAULTS_SEED={SEED}: {name} failed when it was given again; its error is above"
        assert differences(contents(output), whole[name]) == [], f"FAULTS_SEED={SEED}, {name}"
        shutil.rmtree(output)
    table = pd.crosstab(*zip(*kills, strict=True), rownames=["command"], colnames=[""], margins=True,
                        margins_name="kills")
    print(f"{len(kills)} kills; after each of {tries} commands all files were equal:\n{table.to_string()}")
