"""`import limr_jax` as a stranger meets it: names, examples, speed, mistakes."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import ROOT

import limr_jax
from limr_jax import algorithms
from limr_jax.library import curves, grading, policies, selection
from limr_jax.storage import metrics, rollout_dump

pytestmark = pytest.mark.usefixtures("quick_compiler")
PUBLIC = [name for name in limr_jax.__all__ if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(limr_jax, name))]


def test_every_name_is_there_and_no_other():
    assert dir(limr_jax) == sorted(limr_jax.__all__) == limr_jax.__all__
    assert {*limr_jax._HOMES} == {*PUBLIC}
    for name in PUBLIC:
        assert inspect.getdoc(getattr(limr_jax, name)), name
    namespace = {}
    exec("from limr_jax import *", namespace)
    assert {*PUBLIC} <= namespace.keys()


def test_a_type_checker_reads_the_same_names():
    tree = ast.parse((ROOT / "limr_jax/__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)][:1]
    homes = {alias.asname: node.module for node in block.body for alias in node.names}
    assert homes == limr_jax._HOMES


def test_algorithms_has_each_of_its_files():
    files = {module.name for module in pkgutil.iter_modules(algorithms.__path__)}
    assert {*algorithms.__all__} == files
    assert all(inspect.ismodule(getattr(limr_jax.algorithms, name)) for name in files)


@pytest.mark.parametrize(
    "name, said",
    [
        ("grad", "did you mean 'grade'?"),
        ("Generate", "did you mean 'generate'?"),
        ("rewards_", "(dir(limr_jax) has all names)"),
        ("judge me", "(dir(limr_jax) has all names)"),
        ("multihost.agree", "(dir(limr_jax) has all names)"),
        ("compilation", "it is a module: import limr_jax.compilation"),
    ],
)
def test_a_name_that_is_not_there(name, said, monkeypatch):
    monkeypatch.delattr(limr_jax, name, raising=False)  # loaded by another test
    with pytest.raises(AttributeError) as raised:
        getattr(limr_jax, name)
    text = str(raised.value)
    assert text.startswith(f"module 'limr_jax' has no attribute {name!r}")
    assert said in text
    assert not hasattr(limr_jax, name)


def test_the_import_is_quick_and_no_name_starts_a_device():
    program = """
import resource, sys
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
before = used()
import limr_jax
assert used() - before < 0.25, used() - before
assert not {"jax", "numpy"} & {*sys.modules}
assert limr_jax.grade("0.50", "1/2") and "jax" not in sys.modules
for name in limr_jax.__all__:
    getattr(limr_jax, name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


MODULES = [limr_jax, grading, selection, curves, policies]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_of_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_an_example(name):
    function = getattr(limr_jax, name)
    if name in ("read_rollouts", "reward_curves"):  # theirs is README.md's
        text = (ROOT / "limr_jax/library/README.md").read_text("utf-8")
        assert f"limr_jax.{name}(run)" in text
    else:
        assert doctest.DocTestFinder().find(function)[0].examples


@pytest.fixture
def run(tmp_path):
    """What a run of two epochs over two problems leaves behind, by its own writers."""
    right = {1: {"a": [1, 0], "b": [0, 0]}, 2: {"a": [0, 1], "b": [1, 1]}}
    workdir = tmp_path / "run"
    with metrics.Metrics(workdir) as log:
        dump = rollout_dump.Dump(workdir)
        for step, by_problem in right.items():
            pass_rate = np.mean([*by_problem.values()])
            log.step(step, {"pass_rate": pass_rate, "epoch": step, "rollouts": 4})
            dump.add(
                step,
                [
                    {
                        "id": problem,
                        "sample": g,
                        "response": f"#### {'46'[problem == 'b']}" if good else "?",
                        "correct": good,
                        "valid": True,
                        "reward": good,
                    }
                    for problem, goods in by_problem.items()
                    for g, good in enumerate(goods)
                ],
            )
        dump.close()
    return workdir


def test_examples_of_the_readme(run, tmp_path):
    page = ROOT / "limr_jax/library/README.md"
    results = doctest.testfile(
        str(page), module_relative=False, globs={"run": run, "folder": tmp_path}
    )
    assert results.attempted > 20 and not results.failed


def test_examples_are_seen_to_fail(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        '    >>> import limr_jax\n    >>> limr_jax.grade("1", "2")\n    True\n'
    )
    assert doctest.testfile(str(page), module_relative=False).failed == 1
    assert "False" in capsys.readouterr().out


@pytest.mark.parametrize("reader", ["read_curves", "read_rollouts", "reward_curves"])
def test_no_run(reader, tmp_path):
    read = getattr(limr_jax, reader)
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(limr_jax.InputError, match="give the workdir of a run"):
            list(read(place))


def test_curves_leave_out_what_is_no_number(tmp_path):
    text = '{"step": 1, "loss": null, "kl": 0.5, "by": {"x": 2}, "name": "a"}\n'
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 2, "loss": 1, "kl"')
    found = limr_jax.read_curves(tmp_path)
    assert {name: curve.values.tolist() for name, curve in found.items()} == {
        "train/kl": [0.5],
        "train/by/x": [2.0],
    }
    with pytest.raises(limr_jax.InputError, match="value='right' is unknown"):
        limr_jax.reward_curves(tmp_path, value="right")


def test_every_argument_and_result_is_annotated():
    """Also of the papers' formulas, of which mypy reads the types that there are."""
    functions = [getattr(limr_jax, name) for name in FUNCTIONS]
    for name in algorithms.__all__:
        module = importlib.import_module(f"limr_jax.algorithms.{name}")
        functions += [
            function
            for public, function in inspect.getmembers(module, inspect.isfunction)
            if not public.startswith("_") and function.__module__ == module.__name__
        ]
    bare = [
        f"{function.__module__}.{function.__name__}"
        for function in functions
        if {*inspect.signature(function).parameters, "return"}
        - {*function.__annotations__}
    ]
    assert len(functions) > 50 and not bare
