"""Run the examples in the docstrings of lab_utils."""

import doctest
import importlib

import pytest

from lab_utils import REPOSITORY

MODULES = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
           for path in sorted((REPOSITORY / "lab_utils").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.component
@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
