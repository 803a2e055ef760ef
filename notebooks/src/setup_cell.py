# Set-up. In Colab this cell installs the workshop (about 2 minutes, once); elsewhere it finds it, or says what to do.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY_URL = ""
folders = [Path.cwd(), *Path.cwd().parents, Path("workshop").resolve()]
root = next((folder for folder in folders if (folder / "lab_utils").is_dir()), folders[-1])
if "COLAB_RELEASE_TAG" in os.environ:
    if not root.exists():
        if not REPOSITORY_URL:
            sys.exit("The workshop is missing here: set REPOSITORY_URL in this cell to its repository's address.")
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY_URL, str(root)], check=True)
    subprocess.run(["bash", str(root / "setup" / "create_env.sh")], check=True)  # once installed, it takes a second
elif not root.exists():
    sys.exit("The workshop is missing here: clone its repository, and open this notebook in its folder.")
elif importlib.util.find_spec("trl") is None:
    sys.exit(f"This notebook's kernel ({sys.executable}) lacks the workshop's packages: run 'bash setup/create_env.sh' "
             f"in {root}, then choose the kernel 'RL workshop' (in JupyterLab: menu Kernel, Change Kernel).")
os.chdir(root)
sys.path.insert(0, str(root))
import lab_utils  # first, because it sets what torch and tqdm read when they are imported
