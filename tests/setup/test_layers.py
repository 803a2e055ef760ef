"""The layout of lab_utils: a folder imports from lower floors only, and no imports form a circle (DESIGN, layout).

Imports inside functions and under TYPE_CHECKING count like all others.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lab_utils import REPOSITORY

FLOORS = {
    "config": 1, "tasks": 1,
    "models": 2, "rewards": 2, "runs": 2,
    "sampling": 3,
    "training": 4, "evaluation": 4,
    "teaching": 5, "figures": 5, "machine": 5, "sharing": 5,
    "sagemaker": 6,
}  # lab_utils/__init__.py is the ground


def modules(package: Path) -> dict[str, Path]:
    """Return the dotted name of every module in a package; a folder's `__init__.py` has the folder's name."""
    names = {}
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imported_modules(name: str, files: dict[str, Path]) -> set[str]:
    """Return the modules of the package that the module `name` imports, anywhere in its file.

    An import also runs the `__init__.py` of the folders above its target. These count too, except those above `name`
    itself, which run before it in any case.
    """
    folder = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
    targets = set()
    for node in ast.walk(ast.parse(files[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (above, node.module) if part)
            submodules = {f"{source}.{alias.name}" for alias in node.names}
            targets |= submodules & files.keys()
            if not submodules <= files.keys():
                targets.add(source)
    for target in list(targets):
        parts = target.split(".")
        parents = {".".join(parts[:length]) for length in range(1, len(parts))}
        targets |= {parent for parent in parents if not name.startswith(f"{parent}.")}
    return targets & files.keys()


def violations(package: Path, floors: dict[str, int]) -> list[str]:
    """Return what breaks the layout, a sentence each."""
    files = modules(package)
    module_graph = {name: imported_modules(name, files) - {name} for name in files}
    found, folder_graph = [], {}
    for name, targets in module_graph.items():
        folder = name.split(".")[1] if "." in name else ""
        for target in sorted(targets):
            other = target.split(".")[1] if "." in target else ""
            if floors.get(other, 0) > floors.get(folder, 0):
                found.append(f"{name} imports {target} from a higher floor")
            if other != folder:
                folder_graph.setdefault(folder, set()).add(other)
    for graph in (module_graph, folder_graph):
        try:
            TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).prepare()
        except CycleError as error:
            found.append("circle: " + " imports ".join(reversed(error.args[1])))
    return found


def test_a_folder_imports_from_lower_floors_and_no_imports_form_a_circle():
    assert violations(REPOSITORY / "lab_utils", FLOORS) == []


def test_the_top_of_the_package_has_the_thirteen_folders_of_the_design():
    files = (REPOSITORY / "lab_utils").rglob("*.py")
    assert {file.relative_to(REPOSITORY / "lab_utils").parts[0] for file in files} == {"__init__.py", *FLOORS}


GOOD = {
    "__init__.py": "",
    "low/__init__.py": "from .part import x",
    "low/part.py": "from .. import y\nfrom .other import z\nimport os",
    "low/other.py": "",
    "beside/__init__.py": "from ..low import x",
    "high/__init__.py": "import package.low.part",
}


@pytest.mark.parametrize(("changed", "complaint"), [
    ({}, None),
    ({"low/other.py": "def f():\n    from package import high"}, "other imports package.high from a higher floor"),
    ({"__init__.py": "from .low.part import x"}, "package imports package.low from a higher floor"),
    ({"low/other.py": "def f():\n    from . import part"}, "circle: package.low.part imports package.low.other"),
    ({"low/other.py": "from ..beside.new import x", "beside/new.py": "", "beside/__init__.py": "",
      "beside/more.py": "from ..low import x"}, "circle: beside imports low imports beside"),
])
def test_a_planted_violation_is_found(tmp_path, changed, complaint):
    for name, text in (GOOD | changed).items():
        file = tmp_path / "package" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = violations(tmp_path / "package", {"low": 1, "beside": 1, "high": 2})
    assert found == [] if complaint is None else any(complaint in sentence for sentence in found), found
