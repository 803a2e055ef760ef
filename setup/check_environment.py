"""Print what this machine has and what the workshop needs; the exit status is 1 if something needed is missing."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # lab_utils may not be installed yet

from lab_utils.machine.environment import check_environment  # noqa: E402

if __name__ == "__main__":
    sys.exit(0 if check_environment() else 1)
