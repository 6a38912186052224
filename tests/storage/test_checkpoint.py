"""What is restored is what was saved, bit for bit, whatever was killed when."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax.errors import InputError
from limr_jax.storage import checkpoint
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.workdir import claim, read_result, read_run, release, write_result

IDENTITY = {
    "config": {"seed": 0, "num_steps": 10, "sampler": {"floor": 0.05}, "stop": (1, 2)},
    "data": {"train": "abc"},
    "version": "0.1.0",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    optimiser: tuple
    step: jax.Array


def make_state(seed=0):
    """Every kind of leaf that a run has: shapes (), (0,) and more; five dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    kernel = jax.random.normal(keys[0], (2, 16, 8))
    return State(
        params={
            "blocks": [{"q.k": kernel}, {"q.k": kernel * jnp.inf}],
            "embed": jax.random.normal(keys[1], (8, 24), jnp.bfloat16),
        },
        optimiser=(jnp.zeros((0,)), None, {"mu": jax.random.normal(keys[2], (24, 8))}),
        step=jnp.int32(seed),
    )


def shapes(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )


def assert_same_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def mesh_of(count):
    return jax.make_mesh((count,), ("x",), devices=jax.devices()[:count])


@pytest.mark.slow
def test_what_comes_back_is_what_was_saved(tmp_path):
    state, meta = make_state(3), {"seconds": 1.25, "ids": ["a"], "sampler": None}
    with checkpoint.Checkpointer(tmp_path, every=5, keep=2) as saver:
        assert saver.latest() is None and saver.due(10) and not saver.due(11)
        assert saver.save(7, state, meta) and not saver.save(7, state, meta)
        assert saver.latest() == 7
        restored, read = saver.restore(7, shapes(state))
    assert_same_bits(restored, state)
    assert read == meta
    with checkpoint.Checkpointer(tmp_path, read_only=True) as reader:
        assert reader.latest() == 7
        params, _ = reader.restore(7, {"params": shapes(state.params)}, partial=True)
    assert_same_bits(params["params"], state.params)


@pytest.mark.slow
def test_eight_devices_to_one_and_to_four(tmp_path):
    state = make_state()
    eight = NamedSharding(mesh_of(8), PartitionSpec("x"))
    state = dataclasses.replace(
        state,
        params=state.params | {"embed": jax.device_put(state.params["embed"], eight)},
    )
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(1, state, {})
        for count in (1, 4, 8):
            there = NamedSharding(mesh_of(count), PartitionSpec("x"))
            template = shapes(state)
            template.params["embed"] = jax.ShapeDtypeStruct(
                (8, 24), jnp.bfloat16, sharding=there
            )
            restored, _ = saver.restore(1, template)
            assert restored.params["embed"].sharding == there
            assert_same_bits(restored, state)
            digest = params_digest(restored.params)
            assert digest == params_digest(state.params)


@pytest.mark.slow
def test_donation_corrupts_neither_a_save_nor_what_was_restored(tmp_path):
    advance = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = advance({"x": jnp.zeros((512, 512)), "n": jnp.int32(0)})
    with checkpoint.Checkpointer(tmp_path, keep=10) as saver:
        for step in range(1, 6):
            saver.save(step, state, {})
            for _ in range(3):
                state = advance(state)
        for step in range(1, 6):
            restored, _ = saver.restore(step, shapes(state))
            assert np.unique(restored["x"]).tolist() == [3 * step - 2]
            # Restored, given away and saved again: the run goes on from it.
            later = advance(advance(restored))
            saver.save(100 + step, later, {})
            assert np.unique(later["x"]).tolist() == [3 * step]


def test_a_save_in_the_hot_loop_is_allowed(tmp_path):
    state = make_state()
    with (
        checkpoint.Checkpointer(tmp_path) as saver,
        jax.transfer_guard("disallow"),
    ):
        saver.save(1, state, {})
        saver.wait()
        params_digest(state)


def test_the_newest_are_kept(tmp_path):
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        for step in (1, 2, 5, 9):
            saver.save(step, make_state(), {})
    steps = tmp_path / "checkpoints"
    assert sorted(path.name for path in steps.iterdir()) == ["5", "9"]
    # A deletion that was killed halfway is not in the way, and the next save ends it;
    # what a user has put there stays.
    (steps / "3" / "state").mkdir(parents=True)
    (steps / "backup_11").mkdir()
    (steps / "12").write_text("no folder")
    (steps / "13").symlink_to("nowhere")
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.restore_newest(shapes(make_state()), say=pytest.fail).step == 9
        assert {"3", "5", "9"} < {path.name for path in steps.iterdir()}
        saver.save(10, make_state(), {})
    left = sorted(path.name for path in steps.iterdir())
    assert left == ["10", "12", "13", "9", "backup_11"]


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path):
    state = {"embed": jnp.zeros((4, 2)), "n": jnp.int32(0)}
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(1, state, {})
        for template, text in [
            (
                {"embed": jnp.zeros((4, 3)), "n": state["n"]},
                r"embed .*\(4, 2\).*\(4, 3\)",
            ),
            ({"embed": state["embed"], "n": jnp.float32(0)}, "n is int32, not float32"),
            ({"embed": jnp.zeros((0, 2)), "n": state["n"]}, r"embed .*\(4, 2\)"),
            ({"embed": state["embed"]}, "it has n "),
            (state | {"new": state["n"]}, "it lacks new "),
        ]:
            with pytest.raises(InputError, match=text):
                saver.restore(1, template)
        with pytest.raises(InputError, match=r"checkpoints/5 is no .* are \[1\]"):
            saver.restore(5, state)
        with pytest.raises(TypeError, match="state's n "):
            saver.save(2, {"n": 3}, {})
    with pytest.raises(InputError, match="has no checkpoints"):
        checkpoint.Checkpointer(tmp_path / "nowhere", read_only=True)
    with pytest.raises(InputError, match="keep=0"):
        checkpoint.Checkpointer(tmp_path / "new", keep=0)
    assert not (tmp_path / "new").exists() and not (tmp_path / "nowhere").exists()


FULL_DISK = """
import resource
import jax.numpy as jnp
from limr_jax.storage import checkpoint
from limr_jax.config.load import run_main

def main(argv):
    with checkpoint.Checkpointer(argv[0]) as saver:
        saver.save(1, {"x": jnp.ones((64, 64))}, {})
        saver.wait()
        # A full disk, as far as a test can have one. Python ignores SIGXFSZ.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        saver.save(2, {"x": jnp.zeros((64, 64))}, {})

run_main(main)
"""


def test_a_save_that_fails_is_an_error_and_the_last_one_stays(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env=dict(os.environ, JAX_PLATFORMS="cpu"),
        timeout=240,  # Orbax's threads would wait 300 s more
    )
    # The storage's threads may complain before the line.
    complaints = [row for row in ran.stderr.splitlines() if row.startswith("error:")]
    assert ran.returncode == 2 and len(complaints) == 1, ran.stderr
    assert "could not be written" in complaints[0] and "make room" in complaints[0]
    with checkpoint.Checkpointer(tmp_path) as saver:
        assert saver.latest() == 1
        restored, _ = saver.restore(
            1, {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
        )
        assert np.unique(restored["x"]).tolist() == [1]
        assert saver.save(2, restored, {}) and saver.latest() == 2


SAVING = """
import os, signal, sys
import jax, jax.numpy as jnp
from limr_jax.storage import checkpoint

workdir, kill_at = sys.argv[1:]

def killed_at(name, module, attribute, count):
    real = getattr(module, attribute)
    calls = []
    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    if kill_at == name:
        setattr(module, attribute, call)

saver = checkpoint.Checkpointer(workdir, keep=1)
start = saver.latest() or 0
template = {"x": jax.ShapeDtypeStruct((256, 1024), jnp.float32), "n": jnp.int32(0)}
if start:
    state, meta = saver.restore(start, template)
    assert meta == {"step": start} and int(state["n"]) == start
    assert bool((state["x"] == start).all())
killed_at("rename", os, "rename", 2)
killed_at("remove", os, "unlink", 3)
killed_at("rmdir", os, "rmdir", 1)
print("ready", flush=True)
for step in range(start + 1, start + 1000):
    state = {"x": jnp.full((256, 1024), step, jnp.float32), "n": jnp.int32(step)}
    saver.save(step, state, {"step": step})
    saver.wait()
    print(step, flush=True)
"""


def save_until_killed(workdir, kill_at="", delay=None):
    """The last step whose save was reported complete before the kill; 0 = none."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(workdir), kill_at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        if delay is not None:
            time.sleep(delay)
            process.kill()
        lines, complaint = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, complaint
    assert complaint == "", complaint
    return int(lines.split()[-1]) if lines.split() else 0


def check_after_kill(workdir, reported):
    """The last complete step is usable; what was half-written or half-deleted goes."""
    template = {
        "x": jax.ShapeDtypeStruct((256, 1024), jnp.float32),
        "n": jax.ShapeDtypeStruct((), jnp.int32),
    }
    with checkpoint.Checkpointer(workdir, keep=1) as saver:
        step = saver.latest()
        assert (step or 0) >= reported
        if step is None:
            return
        state, meta = saver.restore(step, template)
        assert meta == {"step": step} and int(state["n"]) == step
        assert np.unique(state["x"]).tolist() == [step]
        saver.save(
            step + 1,
            state | {"x": state["x"] + 1, "n": state["n"] + 1},
            {"step": step + 1},
        )
    left = [path.name for path in (pathlib.Path(workdir) / "checkpoints").iterdir()]
    assert left == [str(step + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", ["rename", "remove", "rmdir"])
def test_killed_at_a_known_point_of_saving(tmp_path, kill_at):
    reported = save_until_killed(tmp_path, kill_at)
    check_after_kill(tmp_path, reported)


@pytest.mark.slow
def test_killed_at_any_moment_of_saving(tmp_path):
    generator = random.Random(0)
    for _ in range(3):
        reported = save_until_killed(tmp_path, delay=generator.uniform(0.0, 0.6))
        check_after_kill(tmp_path, reported)


@pytest.mark.soak
def test_killed_a_hundred_times(tmp_path):
    generator = random.Random(1)
    for _ in range(100):
        reported = save_until_killed(tmp_path, delay=generator.uniform(0.0, 0.3))
        check_after_kill(tmp_path, reported)


def test_the_digest_sees_names_shapes_dtypes_and_bits():
    params = make_state().params
    digest = params_digest(params)
    assert len(digest) == 64
    assert digest == params_digest(dict(reversed(params.items())))
    assert digest == params_digest(jax.tree.map(np.asarray, params))
    # By hand: one array, as its description and its bytes.
    by_hand = hashlib.sha256(b"a/b:float32[1, 2]:" + np.float32([1, 2]).tobytes())
    one = {"a": {"b": jnp.float32([[1, 2]])}}
    assert params_digest(one) == by_hand.hexdigest()
    embed = params["embed"]
    for changed in (
        embed.T,
        embed.astype(jnp.float16),
        embed.at[0, 0].add(jnp.bfloat16(0.01)),
        jnp.zeros((0,), jnp.bfloat16),
    ):
        assert digest != params_digest(params | {"embed": changed})
    assert digest != params_digest({"w": params["blocks"], "embed": embed})


@contextlib.contextmanager
def untouched(path):
    def contents():
        # Not the lock: to close a file that a process has locked is to unlock it. Nor
        # the lease, whose time is the heartbeat.
        files = [
            f
            for f in path.rglob("*")
            if f.is_file() and f.name not in (".lock", ".lease")
        ]
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = contents()
    yield
    assert contents() == before


def identity(**changes):
    return IDENTITY | {"config": IDENTITY["config"] | changes}


def test_a_workdir_belongs_to_one_run(tmp_path):
    workdir = tmp_path / "a" / "run"
    claim(workdir, IDENTITY)
    assert json.loads((workdir / "run.json").read_text()) == read_run(workdir)
    assert read_run(workdir)["config"]["seed"] == 0
    with untouched(workdir):
        claim(workdir, IDENTITY)  # Tuples against JSON's lists, too.
        for other, text in [
            (identity(seed=1), r"config.seed: 0 → 1: start it .* --workdir"),
            (identity(sampler={}), r"config.sampler.floor: 0.05 → absent"),
            (identity(num_steps=9), r"config.num_steps: 10 → 9"),
            (identity(num_steps=11, seed=2), r"differs in config.seed: 0 → 2:"),
            (IDENTITY | {"data": {"train": "x"}}, r'data.train: "abc" → "x"'),
            (IDENTITY | {"version": "0.2"}, r'version: "0.1.0" → "0.2"'),
        ]:
            with pytest.raises(InputError, match=text):
                claim(workdir, other)
    # Fields of an older version: by their old names, and those that it did not know.
    old = {"sampler": {"name": "dynamic", "dynamic": {"max_rounds": 3, "max_age": 1}}}
    new = {"sampler": {"name": "uniform"}, "filter": {"groups": "mixed"}}
    new["filter"] |= {"max_rounds": 3, "max_age": 1, "keep_kl": True}
    folder = tmp_path / "older"
    claim(folder, {"config": old})
    claim(folder, {"config": new})
    assert read_run(folder)["config"] == new
    new["filter"] |= {"keep_kl": False, "max_rounds": 2}
    said = r"differs in config.filter.keep_kl: absent → false; config.filter.max_rounds"
    folder = tmp_path / "other"
    claim(folder, {"config": old})
    with pytest.raises(InputError, match=said):
        claim(folder, {"config": new})
    many = IDENTITY | {"config": {str(i): i for i in range(20)}}
    with pytest.raises(InputError, match="and 16 more"):
        claim(workdir, many)
    release(workdir)


def test_only_num_steps_may_grow_and_then_the_old_result_goes(tmp_path):
    claim(tmp_path, IDENTITY)
    assert read_result(tmp_path) is None
    write_result(tmp_path, {"steps": 10, "accuracy": None})
    claim(tmp_path, IDENTITY)
    assert read_result(tmp_path) == {"steps": 10, "accuracy": None}
    claim(tmp_path, identity(num_steps=20))
    assert read_result(tmp_path) is None
    assert read_run(tmp_path)["config"]["num_steps"] == 20
    release(tmp_path)


def test_a_workdir_that_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be made"):
        claim(tmp_path / "file" / "run", IDENTITY)
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    with (
        untouched(tmp_path),
        pytest.raises(InputError, match="holds 'checkpoints' but"),
    ):
        claim(tmp_path / "old", IDENTITY)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="run.json cannot be read"):
        claim(tmp_path, IDENTITY)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="give the workdir of a run"):
        read_run(tmp_path / "old")


@pytest.mark.slow
def test_two_processes_do_not_write_one_workdir(tmp_path):
    program = (
        "import sys\nfrom limr_jax.storage.workdir import claim\n"
        "from limr_jax.config.load import run_main\n"
        f"run_main(lambda argv: claim(argv[0], {IDENTITY!r}))"
    )

    def claim_elsewhere():
        command = [sys.executable, "-c", program, str(tmp_path)]
        ran = subprocess.run(command, capture_output=True, text=True)
        return ran.returncode, ran.stderr

    claim(tmp_path, IDENTITY)
    with untouched(tmp_path):
        code, complaint = claim_elsewhere()
    name = f"process {os.getpid()} on {socket.gethostname()}"
    assert code == 2 and complaint.count("\n") == 1
    assert f"is being written by {name}, whose last sign of life came" in complaint
    release(tmp_path)
    assert claim_elsewhere() == (0, "")


TOGETHER = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from limr_jax.multihost import agree, arrays
from limr_jax.storage import checkpoint
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.workdir import claim, write_result

port, process, workdir = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
places = {name: NamedSharding(mesh, PartitionSpec(*axes))
          for name, axes in {"x": ["x"], "n": [], "blocks": [None, "x"],
                             "large": ["x"]}.items()}
make = lambda: {"x": jnp.arange(8.0), "n": jnp.int32(3), "large": jnp.arange(8192.0),
                "blocks": jnp.arange(24.0).reshape(3, 4, 2)}
state = jax.jit(make, out_shardings=places)()
claim(workdir, {"config": {"num_steps": 3}})
template = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
with checkpoint.Checkpointer(workdir, keep=2) as saver:
    saver.save(1, state, {"k": 1})
    saver.save(2, state, {"k": 2})
    restored, meta = saver.restore(saver.latest(), template)
    assert meta == {"k": 2}
    saver.save(3, state, {"k": 3})
    saver.wait()
# What only process 1 reads is damaged: both go on from the same older step.
agree.barrier("saved")
state_3 = pathlib.Path(workdir, "checkpoints/3/state")
for path in state_3.glob("ocdbt.process_1/d/*") if process == "0" else ():
    path.write_bytes(b"")
agree.barrier("damaged")
lines = []
with checkpoint.Checkpointer(workdir, keep=2) as saver:
    step, restored, meta = saver.restore_newest(template, say=lines.append)
assert (step, meta, len(lines)) == (2, {"k": 2}, 1), lines
assert "checkpoints/3 is damaged: state: " in lines[0]
for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored)):
    for left, right in zip(old.addressable_shards, new.addressable_shards):
        assert left.index == right.index and np.array_equal(left.data, right.data)
write_result(workdir, {"by": int(process)})
assert [len(rows) for rows in arrays.rows_on_host(restored["x"])] == [8]
arrays.GATHER_BYTES = 12  # three numbers; of `blocks` a layer, which is more
assert [len(rows) for rows in arrays.rows_on_host(restored["x"])] == [3, 3, 2]
assert [len(rows) for rows in arrays.rows_on_host(restored["blocks"])] == [1, 1, 1]
print(params_digest(restored))
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, port, str(process), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, JAX_PLATFORMS="cpu"),
        )
        for process in (0, 1)
    ]
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    state = {
        "x": np.arange(8, dtype=np.float32),
        "n": np.int32(3),
        "large": np.arange(8192, dtype=np.float32),
        "blocks": np.arange(24, dtype=np.float32).reshape(3, 4, 2),
    }
    digests = [out.split()[-1] for out, _ in told]
    assert digests == [params_digest(state)] * 2
    assert read_result(tmp_path) == {"by": 0}
    # What two processes saved, one restores.
    with checkpoint.Checkpointer(tmp_path, read_only=True) as reader:
        restored, _ = reader.restore(2, shapes(jax.tree.map(jnp.asarray, state)))
    assert params_digest(restored) == digests[0]
