"""The house's rules, as far as a program can see them."""

import ast
import fnmatch
import graphlib
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest
from tiny_run import FIELDS, MODEL, ROOT, configure, set_up, write_problems

from limr_jax import aot, benchmark, chips, run, sft
from limr_jax import config as config_lib
from limr_jax.train import train

CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py"
)
PROGRAMS = [*(ROOT / "limr_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PROGRAMS}


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def fields_of(file: str) -> set[str]:
    config, _ = config_lib.load(["--config", str(ROOT / "configs" / file)])
    return set(config_lib.reading(config)[1]())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_has_the_base_fields(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    config, options = config_lib.load(["--config", str(path)])
    assert config.is_locked
    assert options.workdir == f"runs/{path.stem}"
    # A field that base.py lacks would be one that nothing reads.
    assert fields_of(path.name) in (fields_of("base.py"), fields_of("sft_base.py"))


def test_every_field_is_read(tmp_path, quick_compiler, monkeypatch):
    """By a run of one step, by one that is set up otherwise, or by an evaluation."""
    problems = write_problems(tmp_path / "train.jsonl", 4)
    held_out = write_problems(tmp_path / "eval.jsonl", 1, add=2)
    views = []

    def view(**fields):
        viewed, unread = config_lib.reading(configure(problems, **fields))
        views.append(unread)
        return viewed

    one_step = view(num_steps=1, data__eval=held_out)
    train(set_up(one_step), one_step, tmp_path / "run")
    judged = {"reward": "math", "judge__init": ROOT / "limr_jax/assets/arithmetic"}
    set_up(view(sampler__name="lim", **judged))
    set_up(view(sampler__name="curriculum", sampler__curriculum__minimum=0))
    set_up(view(sampler__name="adarft", sampler__adarft__column="level"))
    assets = ROOT / "limr_jax/assets/arithmetic"
    own = {f"model__{name}": 0 for name in MODEL}  # the checkpoint's dimensions
    examined = view(model__init=assets, benchmarks__names=f"{held_out}@2", **own)
    # It sets a field of a copy of its own, where a view has none.
    monkeypatch.setattr(benchmark, "copy", types.SimpleNamespace(deepcopy=lambda x: x))
    benchmark.set_up(examined).close()
    monkeypatch.setattr(chips, "devices", lambda _: jax.devices()[:1])
    stand_ins = {"type": "v4-8", "problems": 4, "answer_length": 2}
    aot.plan(view(**{f"slice__{name}": value for name, value in stand_ins.items()}))
    unread = set.intersection(*(set(unread()) for unread in views))
    assert not unread


def test_every_field_of_fine_tuning_is_read(tmp_path, quick_compiler):
    texts = tmp_path / "texts.jsonl"
    row = {"problem": "1+1=", "answer": "2", "solution": "1 + 1 = 2 #### 2"}
    texts.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(4)))
    fields = {"rows": 1, "columns": 64, "num_steps": 1, "data.train": texts}
    fields |= {"tokenizer": FIELDS["tokenizer"], "mesh.tensor": 1, "mesh.fsdp": 1}
    fields |= {f"model.{name}": size for name, size in MODEL.items()}
    argv = [f"--config.{name}={value}" for name, value in fields.items()]
    base = str(ROOT / "configs/sft_base.py")
    viewed, unread = config_lib.reading(config_lib.load(["--config", base, *argv])[0])
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(
            sft, "make_mesh", lambda **axes: run.make_mesh(**axes, devices=one)
        )
        sft.train(viewed, tmp_path / "run")
    assert not unread()


def test_files_and_functions_are_short():
    long = [
        named(path)
        for path in PROGRAMS
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
    ]
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 59:
                long.append(f"{named(path)}: {node.name}")
    assert not long


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, within functions too."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FORBIDDEN = {
    "torch",
    "tensorflow",
    "pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
}


def test_no_other_framework_and_nothing_that_runs_what_it_reads():
    for path, tree in TREES.items():
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN, path
        assert path.stem not in ("util", "utils", "common", "helpers", "misc")
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {func.id for func in calls if isinstance(func, ast.Name)}
        assert not names & {"eval", "exec", "__import__"}, path


def test_imports_go_one_way():
    """The package's modules need one another in some order, and nothing above them."""
    modules = {}
    for path in PROGRAMS:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] != "limr_jax":
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        modules[".".join(parts)] = path
    needs = {}
    for module, path in modules.items():
        names = imports(path)
        assert not {name.split(".")[0] for name in names} & {
            "launch",
            "configs",
            "tests",
        }
        # 'limr_jax.data.put' is of limr_jax.data.
        within = {
            name if name in modules else name.rpartition(".")[0] for name in names
        }
        needs[module] = {name for name in within if name in modules} - {module}
    list(graphlib.TopologicalSorter(needs).static_order())  # raises for a circle
    assert needs["limr_jax.objectives"] >= {
        "limr_jax.algorithms.dash"
    }  # it does see them


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
    ended = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_readmes_tree_has_every_module():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1]
    named_there = set(re.findall(r"[\w*]+\.(?:py|sh|ipynb)", tree))
    there = {
        path.name
        for pattern in (
            "launch/*.py",
            "launch/*.sh",
            "limr_jax/*.py",
            "notebooks/*.ipynb",
        )
        for path in ROOT.glob(pattern)
        if path.name != "__init__.py"
    }
    absent = {x for x in there if not any(fnmatch.fnmatch(x, y) for y in named_there)}
    assert not absent
    configs = {path.name for path in CONFIGS}
    assert not {x for x in named_there if not fnmatch.filter(there | configs, x)}


def test_nothing_is_left_for_later():
    texts = {path: path.read_text(encoding="utf-8") for path in PROGRAMS}
    assert not [path for path, text in texts.items() if "TODO" in text]
    assert not [path for path, text in texts.items() if "FIXME" in text]
