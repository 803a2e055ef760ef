# Set-up. In Colab, where the notebook comes alone, first give the address of the workshop's repository below.
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY_URL = ""
root = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "lab_utils").is_dir()), Path("workshop").resolve())
if not root.exists():
    if not REPOSITORY_URL:
        raise SystemExit("The workshop is missing here: set REPOSITORY_URL in this cell to its repository's address.")
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY_URL, str(root)], check=True)
    subprocess.run(["bash", str(root / "setup" / "create_env.sh")], check=True)
os.chdir(root)
sys.path.insert(0, str(root))
