"""What is read is never run: no pickle, no eval, no code that came with a file.

Each place that does run something is listed here, with what it runs. What a user names
as a program of his own (a config file, a reward function) is run by design.
"""

import ast
import pathlib
import subprocess
import sys

import pytest
from tiny_run import ROOT

FILES = [
    path
    for folder in ("limr_jax", "launch", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Modules that make objects, or run code, of bytes that they are given.
MODULES = {
    "_pickle",
    "cloudpickle",
    "code",
    "codeop",
    "copyreg",
    "dill",
    "imp",
    "joblib",
    "jsonpickle",
    "marshal",
    "pickle",
    "shelve",
    "tensorflow",
    "torch",
    "transformers",
    "yaml",
    "zipimport",
}
# Functions, by the last part of their names, that run a text or a file, or load one.
FUNCTIONS = {
    "__import__",
    "compile_command",
    "eval",
    "exec",
    "exec_module",
    "execfile",
    "getoutput",
    "getstatusoutput",
    "import_module",
    "load_module",
    "loads_pickle",
    "parse_expr",
    "popen",
    "read_pickle",
    "run_module",
    "run_path",
    "spawn",
    "sympify",
    "system",
    "unsafe_load",
}
# Those whose danger is an argument: name → (argument, the only value that it may have).
ARGUMENTS = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "weights_only": True,
}
ALLOWED = {
    # The config file that a user names; configs/README.md says that it is a program.
    ("limr_jax/config/config_file.py", "exec_module"),
    # `reward=module.function`; rewards/README.md says that it is the user's program.
    ("limr_jax/rewards/user_reward.py", "import_module"),
    # Our own builders of public sets, by the names of their folders.
    ("limr_jax/data/datasets/tfds.py", "import_module"),
    # The public face's names, each with its module in a literal table.
    ("limr_jax/__init__.py", "import_module"),
    # Our own scripts of launch/, started as a person starts them.
    ("limr_jax/studies/child_process.py", "run_path"),
    ("launch/gpu_parts.py", "run_path"),
    # benchlib.py beside the workload that --workload names: the user's program.
    ("launch/bench.py", "import_module"),
    ("launch/bench_llama_cpp.py", "import_module"),
}


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def found(source: str) -> set[str]:
    """Names in a program that are in MODULES or FUNCTIONS, or are wrong ARGUMENTS."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.module or "").split(".")[0]} & MODULES
            # `from os import system` is called by another name later on.
            names |= {alias.name for alias in node.names} & FUNCTIONS
        elif isinstance(node, ast.Call):
            name = called(node)
            names |= {name} & FUNCTIONS
            for keyword in node.keywords:
                right = ARGUMENTS.get(keyword.arg)
                value = keyword.value
                if right is not None and getattr(value, "value", None) is not right:
                    names.add(keyword.arg)
            # These are dangerous unless they are told not to be.
            whole = ast.unparse(node.func)
            given = {keyword.arg for keyword in node.keywords}
            if whole in ("np.load", "numpy.load") and "allow_pickle" not in given:
                names.add("allow_pickle")
            if whole == "torch.load" and "weights_only" not in given:
                names.add("weights_only")
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
            names.add(node.id)  # handed on, and not called here
    return names


def test_no_program_runs_what_it_reads():
    there = {
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        for name in found(path.read_text(encoding="utf-8"))
    }
    assert there - ALLOWED == set()
    assert ALLOWED - there == set()  # an entry that allows nothing is taken out


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads as f", "pickle"),
        ("import yaml.loader", "yaml"),
        ("f = eval", "eval"),
        ("eval('1')", "eval"),
        ("getattr(x, 'y')(exec)", "exec"),
        ("builtins.exec('1')", "exec"),
        ("os.system('x')", "system"),
        ("from os import system as f", "system"),
        ("subprocess.run('x', shell=True)", "shell"),
        ("subprocess.run('x', shell=flag)", "shell"),
        ("np.load(path)", "allow_pickle"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("torch.load(path)", "weights_only"),
        ("torch.load(path, weights_only=False)", "weights_only"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
        ("sympy.sympify(text)", "sympify"),
    ],
)
def test_it_sees_them(line, name):
    assert name in found(line)


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path, allow_pickle=False)",
        "subprocess.run(['x'])",
        "subprocess.run(['x'], shell=False)",
        "ast.literal_eval(text)",
        "re.compile(text)",
        "model.eval",
    ],
)
def test_it_sees_no_others(line):
    assert found(line) == set()


LOADS = """
import sys
before = set(sys.modules)
import limr_jax.data.tokenizer, limr_jax.models.hf_weights, limr_jax.models.gguf_files
import limr_jax.storage.checkpoint, limr_jax.data.problems
import pickle
def refuse(*_, **__): raise SystemExit("something was unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refuse
import _pickle
_pickle.load = _pickle.loads = _pickle.Unpickler = refuse
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.models import hf_config, hf_weights
from limr_jax.sharding import make_mesh
folder = sys.argv[1]
load_tokenizer(folder).encode_chats([[{"role": "user", "content": "1+1="}]])
config = hf_config.read_config(folder)
mesh = make_mesh(data=1, fsdp=1, tensor=1)
params = hf_weights.load_params(folder, config, mesh)
from limr_jax.storage.checkpoint import Checkpointer
with Checkpointer(sys.argv[2]) as saver:
    saver.save(1, {"params": params}, {"note": 1})
with Checkpointer(sys.argv[2], read_only=True) as saver:
    saver.restore(1, {"params": params})
print("read")
"""


@pytest.mark.soak
def test_nothing_is_unpickled_by_the_libraries_either(tmp_path):
    """A checkpoint, a tokenizer and a saved state are read where pickle is refused."""
    command = [sys.executable, "-c", LOADS, ROOT / "limr_jax/assets/arithmetic"]
    ended = subprocess.run(
        [*command, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "read\n"), ended.stderr


def test_the_rooms_say_what_is_run():
    """What a user names as a program is one, which its README says."""
    for page in ("configs/README.md", "limr_jax/rewards/README.md"):
        text = pathlib.Path(ROOT, page).read_text(encoding="utf-8")
        assert "is run as a program" in text, page
