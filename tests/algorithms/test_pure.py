"""What holds of every file in algorithms/."""

import ast
import pathlib
import re

import pytest

import limr_jax.algorithms

FILES = sorted(
    path
    for path in pathlib.Path(limr_jax.algorithms.__file__).parent.glob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_and_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            imported.add(node.module.split(".")[0])
    assert imported <= {"jax", "numpy", "typing"}
    docstring = ast.get_docstring(tree)
    assert re.search(r"arXiv:\d{4}\.\d{5}", docstring)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name != "init":
            assert ast.get_docstring(node), node.name
