"""The environment: the same tokens whatever it says, or one line that names it."""

import ctypes
import os
import subprocess
import sys

import jax
import pytest
from tiny_run import ROOT, arguments, write_problems

from limr_jax import platform
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError
from limr_jax.sharding import make_mesh
from limr_jax.storage import rollout_dump


def launch(tmp_path, environment: dict, *flags):
    """launch/tpu.py on four problems, as a person would start it."""
    problems = tmp_path / "train.jsonl"
    if not problems.exists():
        write_problems(problems, 4)
    fields = {"data.train": problems, "num_steps": 1, "sampler.name": "mopps"}
    usual = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "launch/tpu.py"), *arguments(fields), *flags]
    return subprocess.run(
        command,
        env=os.environ | usual | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.soak
def test_the_same_tokens_whatever_the_environment(tmp_path):
    """TPU images set the first one; mopps draws from other distributions, too."""
    cached = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    written = []
    for name, value in {
        "LIMR": "",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_THREEFRY_PARTITIONABLE": "0",
    }.items():
        workdir = tmp_path / name
        ended = launch(tmp_path, cached | {name: value}, "--workdir", str(workdir))
        assert ended.returncode == 0, ended.stderr
        written.append(list(rollout_dump.read_dump(workdir)))
    assert all(rows == written[0] for rows in written) and len(written[0]) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        (
            "JAX_PLATFORMS=foo",
            "Unable to initialize backend 'foo': Backend 'foo' is not in the list of "
            "known backends: ",
        ),
        (
            "JAX_NUM_CPU_DEVICES=abc",
            'Invalid value "abc" for JAX flag jax_num_cpu_devices; correct or unset it',
        ),
        (
            "JAX_LOG_COMPILES=maybe",
            "invalid truth value 'maybe' for environment 'JAX_LOG_COMPILES'; correct "
            "or unset it",
        ),
        (
            "XLA_FLAGS=--nonsense=1",
            "Unknown flag in XLA_FLAGS: --nonsense=1; correct or unset it",
        ),
    ],
)
def test_a_variable_that_jax_cannot_read_is_named_in_one_line(tmp_path, variable, said):
    name, _, value = variable.partition("=")
    ended = launch(tmp_path, {name: value}, "--dry_run")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {variable}: {said}")
    assert ended.stderr.endswith("; correct or unset it\n")
    assert ended.stderr.count("\n") == 1


# Script → arguments with which it comes to its imports of JAX.
TINY = "--config configs/tiny.py"
SCRIPTS = {
    "ablate": f"{TINY} --vary kl=0,0.1 --out OUT",
    "arena": "--config configs/arena.py --regimes clean --out OUT",
    "bench": "--workload SHARED/bench/workload.json",
    "check_weights": "absent",
    "data": "list",
    "drafts": "absent",
    "evaluate": f"{TINY} --dry_run",
    "export": "--workdir absent --out OUT",
    "gguf": "absent --out OUT",
    "gpu_parts": "peaks --scratch OUT --limit 60 --dry_run",
    "grade": "ROWS",
    "likelihood": f"{TINY} --dry_run",
    "lim": "score --run absent --out OUT",
    "limr": f"{TINY} --out OUT",
    "pass_rates": "absent --out OUT",
    "report": "absent --out OUT",
    "scale": "--scale devices --out OUT",
    "sft": "--config configs/tiny_sft.py --dry_run",
    "texts": "right --run absent --out OUT",
    "tokenizer": "OUT",
    "tpu": f"{TINY} --dry_run",
    "watch": "absent",
}


def start(script: str, places: dict, environment: dict):
    """A script of launch/ with its arguments of SCRIPTS."""
    arguments = SCRIPTS[script]
    for name, place in places.items():
        arguments = arguments.replace(name, str(place))
    return subprocess.run(
        [sys.executable, f"launch/{script}.py", *arguments.split()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


# They start no JAX themselves.
WITHOUT = {"bench_llama_cpp", "gpu_check"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted({x.stem for x in ROOT.glob("launch/*.py")} - WITHOUT)
)
def test_in_every_script_it_is_that_line(tmp_path, script):
    """Whether it imports JAX before it reads its arguments or afterwards."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"response": "\\\\boxed{2}", "reference": "2"}\n')
    places = {"OUT": tmp_path / "out", "ROWS": rows, "SHARED": ROOT.parent / "shared"}
    if script == "bench" and not places["SHARED"].is_dir():
        pytest.skip("needs ../shared/bench, which is not on this machine")
    ended = start(
        script,
        places,
        {"JAX_NUM_CPU_DEVICES": "two", "BENCH_CACHE": str(tmp_path / "cache")},
    )
    if script in ("data", "grade", "tokenizer"):  # without JAX
        assert (ended.returncode, ended.stderr) == (0, "")
        return
    of_a_point = "devices 1 failed: error: " if script == "scale" else ""
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f'error: {of_a_point}JAX_NUM_CPU_DEVICES=two: Invalid value "two" for JAX '
        "flag jax_num_cpu_devices; correct or unset it\n"
    )
    assert not (tmp_path / "out").is_file()


def test_devices_that_are_first_asked_for_within_jax(tmp_path, monkeypatch):
    """JAX takes its own frames out of what one of its functions raises."""
    curves = tmp_path / "curves.jsonl"
    curves.write_text('{"id": "a", "rewards": [0, 1]}\n')
    arguments = f"score --rewards {curves} --out OUT"
    monkeypatch.setitem(SCRIPTS, "lim", arguments)
    environment = {"JAX_PLATFORMS": "foo"}
    ended = start("lim", {"OUT": tmp_path / "out"}, environment)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        "error: JAX_PLATFORMS=foo: Unable to initialize backend 'foo': Backend 'foo' "
        "is not in the list of known backends: "
    )
    assert ended.stderr.endswith("; correct or unset it\n")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_the_compiler_says_of_a_wrong_value(monkeypatch):
    """It then prints a usage of some hundred lines."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=x")
    with pytest.raises(InputError) as caught:
        platform.check_compiler_flags()
    assert str(caught.value) == (
        "XLA_FLAGS=--xla_backend_optimization_level=x: Couldn't interpret value x for "
        "flag xla_backend_optimization_level; correct or unset it"
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    platform.check_compiler_flags()


def test_what_is_set_aside_is_said_and_gone(monkeypatch):
    values = {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
        "JAX_THREEFRY_PARTITIONABLE": "False",
        "JAX_RANDOM_SEED_OFFSET": "0",
        "JAX_DEBUG_NANS": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    updated = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: updated.append(pair))
    assert platform.set_aside() == [
        "JAX_ENABLE_X64=1 is set aside: the programs are written for 32 bits",
        "JAX_THREEFRY_PARTITIONABLE=False is set aside: random numbers do not depend "
        "on the machine",
    ]
    assert updated == [
        ("jax_enable_x64", False),
        ("jax_threefry_partitionable", True),
    ]
    assert not values.keys() & os.environ.keys() - {"JAX_DEBUG_NANS"}
    assert os.environ["JAX_DEBUG_NANS"] == "1"


def test_a_program_of_ones_own_that_changed_jax_is_told():
    with jax.enable_x64(True), pytest.raises(InputError) as caught:
        make_mesh(1, 1, 1, jax.devices()[:1])
    assert str(caught.value) == (
        "jax_enable_x64=True, but the programs are written for 32 bits: unset "
        "JAX_ENABLE_X64, or give jax.config.update('jax_enable_x64', False)"
    )


def test_only_what_jax_raised_about_itself_is_blamed_on_the_environment():
    try:
        raise RuntimeError("Unable to initialize backend 'foo'")
    except RuntimeError as error:
        assert platform.complaint(error) is None


def test_in_a_checkout_configs_and_launch_lie_beside_the_package():
    assert platform.launch_root() == platform.import_root() == ROOT
    assert platform.launch_words("launch/tpu.py") == ["launch/tpu.py"]
    text = "python launch/tpu.py, and python launch/sft.py"
    assert platform.as_launched(text) == text


def test_from_a_wheel_they_lie_in_a_folder_of_their_own(tmp_path, monkeypatch):
    """It is inside the package, and a script there is a module."""
    shipped = tmp_path / "limr_jax" / "shipped"
    shipped.mkdir(parents=True)
    monkeypatch.setattr(platform, "__file__", str(tmp_path / "limr_jax/platform.py"))
    assert platform.import_root() == tmp_path and platform.launch_root() == shipped
    words = ["-m", "limr_jax.shipped.launch.tpu"]
    assert platform.launch_words("launch/tpu.py") == words
    assert platform.as_launched("so: python launch/sft.py --config x") == (
        "so: python -m limr_jax.shipped.launch.sft --config x"
    )
    parser = config_lib.Parser("launch/lim.py", "python launch/lim.py FILE")
    verb = parser.add_subparsers().add_parser("score")
    assert verb.prog == "python -m limr_jax.shipped.launch.lim score"
    assert "python -m limr_jax.shipped.launch.lim FILE" in parser.format_help()


def test_a_report_from_a_notebook_whose_backend_is_not_installed(tmp_path):
    """As on Kaggle and Colab, whose kernels set it for all children."""
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "launch/report.py"), str(tmp_path / "none")],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | inline,
        capture_output=True,
        text=True,
        timeout=600,
    )
    # It has come as far as to look for the run.
    assert ended.returncode == 2 and "none" in ended.stderr
    assert "Traceback" not in ended.stderr and "MPLBACKEND" not in ended.stderr


_FREES = """
import ctypes
from limr_jax import platform

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(2**16) for _ in range(2048)]
for block in blocks:
    ctypes.memset(block, 1, 2**16)
for block in blocks[:-1]:  # the last one lies above them
    libc.free(block)
before = resident()
platform.return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc alone keeps it so"
)
def test_freed_memory_goes_back_to_the_system():
    """128 MiB below a block in use; in a process of its own, whose heap is small."""
    command = [sys.executable, "-c", _FREES]
    returned = subprocess.check_output(command, cwd=ROOT, timeout=300)
    assert int(returned) > 100 * 2**20


def test_with_another_c_library_nothing_is_returned(monkeypatch):
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda _: object())
    platform.return_freed_memory()
