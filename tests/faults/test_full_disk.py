"""A disk that is full at any stage: a message, nothing of the run is lost, and the same command finishes it later."""

import os
import shutil
import subprocess

import pytest
from commands import contents, differences, run

SHARES = [float(share) for share in os.environ.get("FAULTS_DISK", "0.1 0.5 0.9").split()]


@pytest.fixture
def disk(tmp_path):
    """Return the folder of a file system of its own in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk, left: int) -> None:
    with open(disk / "filler", "wb") as filler:
        filler.write(bytes(shutil.disk_usage(disk).free - left // 4096 * 4096))


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * len(SHARES))
def test_a_full_disk_is_a_message_and_the_same_command_finishes_later(disk, capfd):
    """SFT gets shares of the space that it needs; then its export and its evaluation do."""
    output, messages = disk / "output", []
    assert run("SFT", output) == 0
    whole, needed = contents(output), shutil.disk_usage(disk).used

    def fails_with(left: int) -> None:
        fill(disk, left)
        capfd.readouterr()
        assert run("SFT", output) == 2
        messages.append(f"{left / 1e6:.1f} of {needed / 1e6:.1f} MB: {capfd.readouterr().err.splitlines()[-1]}")
        assert "free space" in messages[-1] and not (output / "export" / "config.json").exists() or left > 4e6
        (disk / "filler").unlink()

    for share in SHARES:
        shutil.rmtree(output)
        fails_with(int(share * needed))
        assert run("SFT", output) == 0
        assert differences(contents(output), whole) == [], messages[-1]
    export = sum(path.stat().st_size for path in (output / "export").iterdir())
    for left in (0, export // 2, export + 8192):
        shutil.rmtree(output / "export")
        (output / "sft" / "eval.json").unlink(missing_ok=True)
        fails_with(left)
    assert run("SFT", output) == 0
    assert differences(contents(output), whole) == []
    with capfd.disabled():
        print("", *messages, sep="\n")
