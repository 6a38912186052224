"""launch/bench_llama_cpp.py, with a stand-in for llama.cpp."""

import collections
import importlib.util
import os
import runpy
import subprocess
import sys
import types
import zipfile

import pytest
from tiny_run import ROOT

from limr_jax.errors import InputError

SCRIPT = ROOT / "launch/bench_llama_cpp.py"
WORKLOAD = {
    "prompts_per_batch": 2,
    "group_size": 3,
    "prompt_len": 5,
    "max_new_tokens": 4,
}


class Library(types.ModuleType):
    """What the script calls of llama.cpp; each call is written down."""

    def __init__(self):
        super().__init__("llama_cpp")
        self.read, self.copied = [], []

    def __getattr__(self, name):
        if not name.startswith("llama_"):
            raise AttributeError(name)
        return lambda *_: types.SimpleNamespace()

    def llama_batch_init(self, size, *_):
        self.size = size
        ids = collections.defaultdict(lambda: [0])
        return types.SimpleNamespace(
            token={}, pos={}, n_seq_id={}, seq_id=ids, logits={}
        )

    def llama_decode(self, _, batch):
        assert batch.n_tokens <= self.size  # behind it is somebody else's memory
        rows = range(batch.n_tokens)
        self.read.append([(batch.seq_id[i][0], batch.pos[i]) for i in rows])
        self.wanted = [i for i in rows if batch.logits[i]]
        return 0

    def llama_memory_seq_cp(self, _, source, target, *__):
        self.copied.append((source, target))

    def llama_sampler_sample(self, _, __, index):
        assert index in self.wanted  # there are logits of it
        return 7


def test_a_prompt_is_read_once_and_all_rollouts_go_on_from_it(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    script = runpy.run_path(str(SCRIPT))
    runner = script["Runner"](ROOT / "a.gguf", WORKLOAD, threads=2)
    seconds, prefill, sampling, tokens = runner.generate([[1, 2, 3, 4, 5]] * 2)
    assert 0 < prefill + sampling <= seconds
    assert tokens == 2 * 3 * 4
    prompts, steps = library.read[:2], library.read[2:]
    assert prompts == [[(row, i) for i in range(5)] for row in (0, 3)]
    assert library.copied == [(0, 1), (0, 2), (3, 4), (3, 5)]
    # The first token of each was drawn from its prompt.
    assert steps == [[(row, 5 + t) for row in range(6)] for t in range(3)]


@pytest.mark.parametrize("large", [{"group_size": 300}, {"prompt_len": 700}])
def test_a_batch_has_room_for_any_workload(large, monkeypatch):
    library, workload = Library(), WORKLOAD | {"max_new_tokens": 2} | large
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    script = runpy.run_path(str(SCRIPT))
    runner = script["Runner"](ROOT / "a.gguf", workload, threads=2)
    runner.generate([[1] * workload["prompt_len"]] * 2)
    assert len(library.read[-1]) == 2 * workload["group_size"]


@pytest.mark.parametrize(
    "name", ["llama_model_load_from_file", "llama_init_from_model"]
)
def test_what_llama_cpp_cannot_load_is_one_line(name, monkeypatch):
    library = Library()
    setattr(library, name, lambda *_: None)
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(InputError, match="llama.cpp could not load .*a.gguf"):
        script["Runner"](ROOT / "a.gguf", WORKLOAD, threads=2)


def run(*arguments, path=""):
    """The script in a process of its own, which finds modules in `path` first."""
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )


def test_what_is_wrong_is_one_line(tmp_path, shared):
    workload = shared / "bench/workload_135m.json"
    absent, alone = tmp_path / "none.gguf", tmp_path / "workload.json"
    alone.write_text("{}")
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("readme", "")
    (tmp_path / "llama_cpp.py").write_text("")
    for arguments, line in (
        ((workload, absent), f"--model={absent}: no such file"),
        ((alone, wheel), f"--workload={alone}: no benchlib.py beside it"),
        ((workload, wheel), f"{wheel} holds 0 .gguf files; give one file"),
        ((workload, wheel, "--threads", "0"), "--threads=0 must be 1 or more"),
    ):
        flags = ("--workload", arguments[0], "--model", *arguments[1:])
        said = run(*flags, path=tmp_path)
        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr == f"error: {line}\n"


@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is not None, reason="it is installed"
)
def test_without_llama_cpp_it_says_what_to_install(tmp_path, shared):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    said = run(
        *("--workload", shared / "bench/workload_135m.json"),
        *("--model", tmp_path / "a.gguf"),
    )
    assert said.returncode == 2
    assert said.stderr.startswith("error: llama.cpp is not installed (")
    assert said.stderr.endswith("; pip install llama-cpp-python\n")
