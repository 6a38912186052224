"""Several real processes on this machine as one run: they agree, stop and end together.

What one process does beside them is run here, on as many of the virtual devices.
"""

import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny_run import ROOT, arguments, configure, run_records, set_up, write_problems

from limr_jax.errors import InputError
from limr_jax.multihost import preemption, watchdog
from limr_jax.multihost.agree import exchange
from limr_jax.multihost.arrays import on_host, put
from limr_jax.multihost.processes import joined
from limr_jax.storage import checkpoint
from limr_jax.train import train

STEPS = 5
REWARD = '''
"""Something that a random policy gets now and then."""

import os
import time

import jax

calls = []


def chance(prompts, completions, **columns):
    calls.append(1)
    time.sleep(float(os.environ.get("GRADING_SECONDS", 0)))
    if f"{jax.process_index()} {len(calls)}" == os.environ.get("FAILS"):
        raise ValueError("no grades here")
    sums = [sum(map(ord, c)) for c in completions]
    return [None if n % 7 == 0 else n % 4 / 3 for n in sums]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The current folder of every process."""
    folder = tmp_path_factory.mktemp("hosts")
    write_problems(folder / "train.jsonl", 12)
    write_problems(folder / "eval.jsonl", 6, add=2)
    (folder / "hosts_reward.py").write_text(REWARD)
    return folder


def fields(folder) -> dict:
    """Twelve problems, eight a step: LIM scores after steps 2 and 4."""
    return {
        "data.train": folder / "train.jsonl",
        "data.eval": folder / "eval.jsonl",
        "num_steps": STEPS,
        "model.layers": 1,
        "sampler.name": "lim",
        "prompts_per_step": 8,
        "reward": "hosts_reward.chance",
        "rollout.max_response_length": 8,
        "micro_batch_rows": 8,
        "optimizer.learning_rate": 1e-3,
    }


class Hosts(list):
    """Running processes, each (its Popen, the file of what it says)."""

    def wait(self, seconds: float = 300.0) -> list[tuple[int, str]]:
        """(exit code, what it said) of each, when all have ended."""
        end = time.monotonic() + seconds
        try:
            for process, _ in self:
                process.wait(max(1.0, end - time.monotonic()))
        finally:
            for process, _ in self:
                process.kill()
        return [(process.returncode, path.read_text()) for process, path in self]


def start(folder, commands, devices=2, **environment) -> Hosts:
    """One process for each command, all of one run on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = Hosts()
    for process, command in enumerate(commands):
        flags = [f"--coordinator=127.0.0.1:{port}", f"--process={process}"]
        path = folder / f"said-{port}-{process}"
        with open(path, "w") as file:
            popen = subprocess.Popen(
                [sys.executable, *command, *flags, f"--processes={len(commands)}"],
                cwd=folder,
                env=os.environ
                | {
                    "JAX_PLATFORMS": "cpu",
                    "JAX_NUM_CPU_DEVICES": str(devices),
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                    # What one run compiled, the next one loads.
                    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
                }
                | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append((popen, path))
    return started


NEVER = ("generate", 0, "SIGTERM")  # a moment that does not come


def command(folder, workdir, *moment, **more) -> list[str]:
    """launch/tpu.py to its end, or to that moment, by kill_at.py."""
    script = [str(ROOT / "tests/kill_at.py"), *map(str, moment or NEVER)]
    script.append(str(ROOT / "launch/tpu.py"))
    given = fields(folder) | {n.replace("__", "."): value for n, value in more.items()}
    return [*script, *arguments(given), "--workdir", str(workdir)]


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory, quick_compiler):
    """The workdir of the run in one process on four devices."""
    workdir = tmp_path_factory.mktemp("alone")
    run_here(folder, workdir, devices=4)
    return workdir


def run_here(folder, workdir, devices: int, **more) -> None:
    made, config = parts(folder, devices, tuple(more.items()))
    train(made, config, workdir)


@functools.cache
def parts(folder, devices: int, more: tuple = ()):
    """The run's parts and its config; runs of one process share their programs."""
    given = {name.replace(".", "__"): value for name, value in fields(folder).items()}
    given |= dict(more)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        config = configure(given.pop("data__train"), **given)
        return set_up(config, devices), config


def assert_same_run(workdir, alone, but=()) -> None:
    """The same rollouts and grades; numbers but for the order of summation."""
    here, there = run_records(workdir), run_records(alone)
    assert len(here["rollouts"]) == STEPS * 16
    assert here["rollouts"] == there["rollouts"]
    assert here["evals"] == there["evals"]
    assert_same_numbers(here, there, but)
    before, after = there["metrics"][0], there["metrics"][-1]
    assert before["gradient_norm"] > 1e-3 and after["epoch"] == 2.5


def assert_same_numbers(here, there, but=()) -> None:
    """The metrics of each step to 1e-5, LIM's scores the same."""
    for a, b in zip(here["metrics"], there["metrics"], strict=True):
        assert a.keys() == b.keys() >= {*but}
        for name in a.keys() - {*but}:
            if b[name] is None:  # a share of nothing
                assert a[name] is None
                continue
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), name
            if name.startswith("lim/"):
                assert a[name] == b[name]


def latest(workdir) -> int | None:
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        return saver.latest()


def run(folder, workdir, *moment, processes=2, **environment):
    """The run to its end, or until that moment of the last process; (code, words)."""
    moments = [*[()] * (processes - 1), moment]
    commands = [command(folder, workdir, *moment) for moment in moments]
    return start(folder, commands, **environment).wait(900)


# The word of a stop is quick, and grading takes longer.
QUICK = {"BEAT_SECONDS": "0.05", "GRADING_SECONDS": "1"}


@pytest.mark.slow
def test_a_stop_of_one_host_and_then_the_run_that_one_process_makes(
    folder, alone, tmp_path
):
    """SIGTERM reaches process 1 alone, JAX's 0; two processes go on, or one."""
    workdir = tmp_path / "run"
    said = run(folder, workdir, "generate", 2, "SIGTERM", PERMUTED="1", **QUICK)
    assert [code for code, _ in said] == [0, 0], said
    assert f"the same command goes on: {workdir}" in said[1][1]
    assert latest(workdir) == 1  # the rollouts of step 2 were dropped, on both
    shutil.copytree(workdir, tmp_path / "copy")
    said = run(folder, workdir)
    assert [code for code, _ in said] == [0, 0], said
    assert "going on after step 1 of 5" in said[0][1]
    assert "step" not in said[1][1].replace("steps", "")  # one process speaks
    assert_same_run(workdir, alone)
    run_here(folder, tmp_path / "copy", devices=4)
    assert_same_run(tmp_path / "copy", alone)


@pytest.mark.slow
def test_a_stop_before_the_first_step(folder, tmp_path):
    """It waits until all hosts are there, and all of them save step 0."""
    moment = ("limr_jax.first_state.restore_or_begin", 1, "SIGTERM")
    said = run(folder, tmp_path / "run", *moment, **QUICK)
    assert [code for code, _ in said] == [0, 0], said
    assert "the same command goes on" in said[0][1]
    assert latest(tmp_path / "run") == 0 and not run_records(tmp_path / "run")["evals"]


@pytest.mark.slow
@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.soak), 4])
def test_a_reward_function_that_fails_on_one_host_ends_all(folder, tmp_path, call):
    """Each saves its part of the state; the first calls are of the evaluation."""
    workdir, evaluated = tmp_path / "run", 2
    ended = run(folder, workdir, FAILS=f"1 {call}")
    number = REWARD.splitlines().index('        raise ValueError("no grades here")') + 1
    line = (
        f"error: {socket.gethostname()}, in JAX 1: reward function hosts_reward.chance "
        f"raised ValueError: no grades here (line {number} of "
        f"{folder / 'hosts_reward.py'}); give None for what it cannot grade; the state "
        f"after step {max(0, call - evaluated - 1)} is saved: mend it, then give the "
        "same command again"
    )
    assert [code for code, _ in ended] == [2, 2], ended
    assert all(line in words.splitlines() for _, words in ended), ended
    assert latest(workdir) == max(0, call - evaluated - 1)


@pytest.mark.soak
def test_a_stop_within_an_update(folder, alone, tmp_path):
    """SIGTERM reaches process 1 alone; both finish the update, and save after it."""
    workdir = tmp_path / "run"
    said = run(folder, workdir, "update", 3, "SIGTERM", **QUICK)
    assert [code for code, _ in said] == [0, 0], said
    assert latest(workdir) == 3
    said = run(folder, workdir)
    assert "going on after step 3 of 5" in said[0][1], said
    assert_same_run(workdir, alone)


@pytest.mark.soak
def test_a_host_that_is_killed_ends_all_and_four_go_on(folder, tmp_path):
    """With the real time-outs; then four processes, then one, from its checkpoints."""
    workdir = tmp_path / "run"
    moments = ("generate", 0, "SIGKILL"), ("generate", 3, "SIGKILL")
    running = start(folder, [command(folder, workdir, *moment) for moment in moments])
    running[1][0].wait(300)
    died = time.monotonic()
    said = running.wait(60)
    assert time.monotonic() - died < 60
    assert said[1][0] == -signal.SIGKILL and said[0][0] not in (0, 2), said
    assert "error: process 1" in said[1][1] and "died: killed" in said[1][1]
    assert "has given no sign of life for 40 s; the last checkpoint" in said[0][1]
    assert latest(workdir) == 2
    said = run(folder, workdir, "generate", 2, "SIGTERM", processes=4)
    assert [code for code, _ in said] == [0] * 4, said
    assert latest(workdir) >= 3
    run_here(folder, workdir, devices=8)
    assert len(run_records(workdir)["rollouts"]) == STEPS * 16


@pytest.mark.soak
@pytest.mark.parametrize("killed", [(1, 3), (0, 2)])
def test_two_of_four_that_are_killed_end_all(folder, alone, tmp_path, killed):
    """Process 0 is the coordinator; the same command goes on from the checkpoint."""
    workdir = tmp_path / "run"
    moment = "generate", 4, "SIGKILL"
    moments = [moment if process in killed else NEVER for process in range(4)]
    commands = [command(folder, workdir, *moment) for moment in moments]
    said = start(folder, commands, DEAD_SECONDS="15").wait(900)
    for process, (code, words) in enumerate(said):
        if process in killed:
            assert code == -signal.SIGKILL, said
        else:
            assert code not in (0, 2), said
        assert "the last checkpoint stands, and the same command goes on" in words
    # Where step 2's was still being written it is not whole, and is no checkpoint.
    saved = latest(workdir)
    assert saved in (2, None)
    said = run(folder, workdir, processes=4)
    assert [code for code, _ in said] == [0] * 4, said
    assert ("going on after step 2 of 5" in said[0][1]) == (saved == 2), said
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_rollouts_given_out_in_rounds(folder, tmp_path, quick_compiler):
    """What each host grades of a round says what all of them write in the next."""
    rounds = {
        "num_steps": 2,
        "allocation__name": "ada",
        "allocation__ada__per_round": 1,
        "allocation__ada__taken": 2,
        "allocation__ada__rounds": 3,
    }
    given = command(folder, tmp_path / "run", **rounds)
    said = start(folder, [given] * 2).wait(900)
    assert [code for code, _ in said] == [0, 0], said
    run_here(folder, tmp_path / "alone", devices=4, **rounds)
    here, there = run_records(tmp_path / "run"), run_records(tmp_path / "alone")
    assert here["rollouts"] == there["rollouts"]
    assert_same_numbers(here, there)
    assert [row["ada/rounds"] for row in here["metrics"]] == [2, 2]


@pytest.mark.slow
def test_drafts_of_two_hosts(folder, tmp_path, quick_compiler):
    """The third step asks some problems again, whose rollouts lie on either host."""
    # Cold, and hardly learning, so that what was written once is written again.
    few = {"num_steps": 3, "rollout__temperature": 0.005}
    few["optimizer__learning_rate"] = 1e-6
    given = command(folder, tmp_path / "run", rollout__drafts=3, **few)
    said = start(folder, [given] * 2).wait(900)
    assert [code for code, _ in said] == [0, 0], said
    run_here(folder, tmp_path / "alone", devices=4, rollout__drafts=3, **few)
    run_here(folder, tmp_path / "without", devices=4, **few)
    here, there = run_records(tmp_path / "run"), run_records(tmp_path / "alone")
    without = run_records(tmp_path / "without")
    assert here["rollouts"] == there["rollouts"] == without["rollouts"]
    assert_same_numbers(here, there)
    steps = [[x["decode_steps"] for x in r["metrics"]] for r in (here, without)]
    assert sum(steps[0]) < sum(steps[1])


@pytest.mark.soak
@pytest.mark.parametrize(("processes", "tensor"), [(2, 1), (4, 1), (2, 4)])
def test_unbroken(folder, alone, tmp_path, processes, tensor):
    """With tensor=4 both hosts hold all rollouts, and one of them grades each."""
    given = command(folder, tmp_path / "run", mesh__tensor=tensor)
    said = start(folder, [given] * processes).wait(900)
    assert [code for code, _ in said] == [0] * processes, said
    # How slots are left empty is of the parts that rows lie in.
    but = () if tensor == 1 else ("rollout_waste", "decode_steps")
    assert_same_run(tmp_path / "run", alone, but)


def main_job(folder, name, processes, devices, **fields):
    """configs/tiny.py in so many processes, to its end: what it left behind."""
    command = [
        str(ROOT / "launch/tpu.py"),
        f"--config={ROOT / 'configs/tiny.py'}",
        f"--workdir={folder / name}",
        *(f"--config.{key}={value}" for key, value in fields.items()),
    ]
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    said = start(folder, [command] * processes, devices, **quick).wait(1800)
    assert {code for code, _ in said} == {0}, said
    return run_records(folder / name)


@pytest.fixture(scope="module")
def main_job_alone(tmp_path_factory):
    """The whole main job in one process on one device."""
    return main_job(tmp_path_factory.mktemp("main_job"), "alone", 1, 1)


@pytest.mark.soak
@pytest.mark.parametrize("processes", [2, 4])
def test_the_main_job(tmp_path, main_job_alone, processes):
    """To its end: the first steps are those of one process, the end is as good.

    Once the summation's order has moved a weight a token may differ, so the runs part
    later; accuracies on 512 problems agree within the interval of their difference.
    """
    steps = {"num_steps": STEPS, "evaluation.samples": 0}
    there = main_job(tmp_path, "one", 1, 2 * processes, **steps)
    here = main_job(tmp_path, "hosts", processes, 2, **steps)
    assert len(here["rollouts"]) == STEPS * 512
    assert here["rollouts"] == there["rollouts"]
    assert_same_numbers(here, there)
    whole = main_job(tmp_path, "whole", processes, 2)
    a, b = (x["result"]["eval_accuracy_after"] for x in (whole, main_job_alone))
    print(f"\n{processes} processes: {a:.1%}, one: {b:.1%}")
    assert abs(a - b) <= 1.96 * (2 * b * (1 - b) / 512) ** 0.5


def ran_with(path, *lines: str) -> str:
    """A script that runs the one that its arguments name, after these lines."""
    after = (
        "sys.argv = sys.argv[1:]",
        "runpy.run_path(sys.argv[0], run_name='__main__')",
    )
    path.write_text("\n".join(["import runpy, sys, time", *lines, *after]))
    return str(path)


@pytest.mark.slow
def test_a_run_that_differs_ends_before_anything_is_compiled(folder, tmp_path):
    """All within 10 s of the last one's report."""
    same, other = (
        command(folder, tmp_path / "a"),
        command(folder, tmp_path / "a", seed=7),
    )
    timed = ran_with(
        tmp_path / "timed.py",
        "from limr_jax.multihost import agree",
        "require_same = agree.require_same",
        "def timed(*report):",
        "    print('reports at', time.time(), flush=True)",
        "    require_same(*report)",
        "agree.require_same = timed",
    )
    said = start(folder, [[timed, *x] for x in (same, same, other)]).wait(100)
    ended = time.time()
    reported = [float(re.search("reports at (.*)", text)[1]) for _, text in said]
    assert 0 < ended - max(reported) < 10
    assert [code for code, _ in said] == [1, 1, 1], said
    host = socket.gethostname()
    for _, text in said:
        assert (
            f"error: hosts differ in config and code, process 0 ({host}) → "
            f"process 2 ({host}): config.seed: 0 → 7; start the same command" in text
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_mistake_on_one_host_ends_all(folder, tmp_path):
    """Process 1 finds no problems: it says so, and the others repeat it."""
    gone = ran_with(
        tmp_path / "gone.py",
        "from limr_jax import setup",
        "from limr_jax.errors import InputError",
        "def set_up(config): raise InputError('no problems here; put them there')",
        "setup.set_up = set_up",
    )
    given = command(folder, tmp_path / "a")
    said = start(folder, [given, [gone, *given]]).wait(100)
    assert [code for code, _ in said] == [1, 2], said
    assert "error: no problems here; put them there" in said[1][1]
    assert "ended: no problems here; put them there; the last checkpoint" in said[0][1]


DIFFERS = """
import sys, time
import kill_at
import limr_jax
import numpy as np
from limr_jax.multihost import agree, processes

kill_at.permute()
given = dict(flag[2:].split("=") for flag in sys.argv[1:])
process = int(given["process"])
with processes.joined(given["coordinator"], int(given["processes"]), process):
    assert agree.exchange("who", process) == [1, 0]
    assert agree.broadcast("first", process) == 1
    for field in ("ids", "seed", "code", "step"):
        mine = {"ids": 0, "seed": 0, "code": "0.1", "step": 4}
        mine |= {field: 6} if process else {}
        limr_jax.__version__ = mine["code"]
        fingerprint = {"seed": mine["seed"], "code": agree.code_digest()}
        start = time.time()
        try:
            ids_P = np.array([2, mine["ids"]])
            agree.require_same_step(fingerprint, mine["step"], ids_P)
        except agree.Diverged as error:
            print(field, start, time.time(), error)
    print("last", time.time(), flush=True)
    agree.barrier(f"place {process}")
"""


@pytest.mark.slow
def test_what_differs_is_named(folder):
    """Where JAX numbers the processes otherwise than the coordinator does."""
    said = start(folder, [["-c", DIFFERS]] * 2).wait(60)
    ended = time.time()
    assert [code for code, _ in said] == [1, 1], said
    rows = [[x.split(" ", 3) for x in text.splitlines()] for _, text in said]
    host = socket.gethostname()
    one, two = f"process 0 ({host}, in JAX 1)", f"process 1 ({host}, in JAX 0)"
    prefix = f"hosts differ in step 5, {one} → {two}: "
    expected = {
        "ids": rf'{re.escape(prefix)}ids: "\w+" → "\w+"; start the same command',
        "seed": f"{re.escape(prefix)}seed: 0 → 6; start the same command",
        "code": rf'{re.escape(prefix)}code: "0\.1 .*" → "6 .*"; start the same command',
        "step": re.escape(
            f"different places: {{'{one}': 'step 5', '{two}': 'step 7'}}"
        ),
        "last": None,
    }
    for (field, line), *both in zip(expected.items(), *rows):
        assert [name for name, *_ in both] == [field, field]
        reported = max(float(start) for _, start, *_ in both)
        if line is None:
            assert 0 < ended - reported < 10
            continue
        for _, _, seen, text in both:
            assert re.search(line, text), text
            assert 0 <= float(seen) - reported < 10
    for _, text in said:
        last = text.splitlines()[-1]
        assert last.startswith("error: the processes are at different places: {")
        assert f"'{one}': 'place 0', '{two}': 'place 1'" in last


JOINS = """
import sys, time
import jax
from jax._src.lib import xla_client
from limr_jax.multihost import processes as multihost

moment, *flags = sys.argv[1:]
given = dict(flag[2:].split("=") for flag in flags)
process, processes = int(given["process"]), int(given["processes"])
make, join = xla_client.make_cpu_client, jax.distributed.initialize


def start(*, num_devices, **more):
    if process == 1 and moment == "fails":
        raise RuntimeError("no chips here")
    if process == 1 and moment == "blocks":
        time.sleep(60)
    if process == 1 and moment == "fewer":
        num_devices = 1
    return make(num_devices=num_devices, **more)


def initialize(*given, **more):
    join(*given, **more)
    multihost.SAY_SECONDS = (1,)
    multihost.JOIN_SECONDS = 2 if moment == "blocks" else 60


xla_client.make_cpu_client, jax.distributed.initialize = start, initialize
with multihost.joined(given["coordinator"], processes, process):
    print("joined")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "lines", "codes"),
    [
        (
            "fewer",
            ["JAX sees 2 with 3 devices, 2 of them here", "3 devices, 1 of them here"],
            [2, 2],
        ),
        (
            "fails",
            [
                "error: process 1 (HOST) ended: JAX_PLATFORMS=cpu, "
                "JAX_NUM_CPU_DEVICES=2: Unable to initialize backend 'cpu': no chips",
                "error: JAX_PLATFORMS=cpu, JAX_NUM_CPU_DEVICES=2: Unable to initialize "
                "backend 'cpu': no chips here",
            ],
            [1, 2],
        ),
        (
            "blocks",
            ["waiting for the devices of all hosts for 2 s; is the"] * 2,
            [1, 1],
        ),
    ],
)
def test_half_initialised(folder, moment, lines, codes):
    """Process 1 has fewer devices, or none, or its devices never come."""
    said = start(folder, [["-c", JOINS, moment]] * 2).wait(60)
    assert [code for code, _ in said] == codes, said
    for line, (_, text) in zip(lines, said, strict=True):
        assert line.replace("HOST", socket.gethostname()) in text
        assert "joined" not in text.replace("have joined", "")


SPEAKS = """
import sys, time
import kill_at
from limr_jax.multihost import agree, processes, watchdog
kill_at.permute()
moment, *flags = sys.argv[1:]
given = dict(flag[2:].split("=") for flag in flags)
process = int(given["process"])
watchdog.DEAD_SECONDS, watchdog.BEAT_SECONDS = 4.0, 0.25
agree.REPORT_SECONDS = 3.0
with processes.joined(given["coordinator"], int(given["processes"]), process):
    agree.barrier("all are here")
    if moment == "late" and process == 1:
        time.sleep(60)
    if moment.startswith("leaves") and process == int(moment[-1]):
        sys.exit(0)
    if moment != "late":
        time.sleep(4 * watchdog.BEAT_SECONDS)  # until each knows the other's name
        print("ready", flush=True)
        time.sleep(60)
    agree.require_same("step 1", {"ids": "a"})
"""


def wait_for(hosts_running, word) -> None:
    end = time.monotonic() + 60
    while not all(word in path.read_text() for _, path in hosts_running):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_report_that_does_not_come(folder):
    """A process that lives, but does not say what it does."""
    said = start(folder, [["-c", SPEAKS, "late"]] * 2).wait(60)
    host = socket.gethostname()
    assert said[0][0] == 1
    late = f"process 1 ({host}, in JAX 0)"
    assert f"no report of 'step 1' within 3 s from {late}" in said[0][1]
    # Process 1 may not have read why before the coordinator was gone.
    assert said[1][0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_leaves_early_ends_the_others(folder, process):
    """By SystemExit, though it says that all is well; the others are told at once."""
    said = start(folder, [["-c", SPEAKS, f"leaves {process}"]] * 2).wait(60)
    assert [said[process][0], said[1 - process][0]] == [0, 1], said
    gone = f"process {process} ({socket.gethostname()}, in JAX {1 - process})"
    line = f"error: {gone} ended: SystemExit 0 before the end of the run; the last"
    assert line in said[1 - process][1]


@pytest.mark.parametrize(
    ("process", "number"),
    [
        (0, signal.SIGKILL),
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
        # To the coordinator one that hangs is one that died.
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.soak),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_others(folder, process, number):
    """Process 0 is the coordinator, and JAX's 1."""
    running = start(folder, [["-c", SPEAKS, "sleep"]] * 2)
    wait_for(running, "ready")
    running[process][0].send_signal(number)
    other, path = running[1 - process]
    started = time.monotonic()
    assert other.wait(30) != 0
    assert time.monotonic() - started < 15
    running[process][0].kill()
    running[process][0].wait()
    wait_for([running[1 - process]], "the same command goes on")
    text, host = path.read_text(), socket.gethostname()
    if (number, process) == (signal.SIGKILL, 0):
        # jaxlib aborts at once, and the shell beside it speaks.
        assert "error: process 1" in text and "the coordinator (process 0) is" in text
    elif process == 0:
        assert f"error: process 0 ({host}, in JAX 1), the coordinator, is gone" in text
    else:
        gone = f"process 1 ({host}, in JAX 0)"
        assert f"error: {gone} has given no sign of life for 4 s" in text
    assert "the last checkpoint stands, and the same command goes on" in text


def test_half_of_the_flags_are_refused():
    for given in (("a:1", 0, -1), ("", 2, 0), ("a:1", 2, 2), ("a:1", 2, -1)):
        with pytest.raises(InputError, match="give all three"), joined(*given):
            pass


class Store:
    """The coordinator's key-value store, as far as Watch uses it."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, text, allow_overwrite):
        assert allow_overwrite
        self.values[key] = text

    def key_value_dir_get(self, folder):
        return [*self.values.items()]


@pytest.mark.parametrize("seed", range(6))
def test_all_hosts_stop_after_the_same_update(seed, monkeypatch):
    """Whoever hears of it, and wherever the others are."""
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.002)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    choose, store = random.Random(seed), Store()
    stops = [preemption.Stop() for _ in range(4)]
    for one in stops:
        one.obeyed = True
    watches = [
        watchdog.Watch(store, i, 4, pytest.fail, current_stop=lambda i=i: stops[i])
        for i in range(4)
    ]
    together = threading.Barrier(4)
    last = [None] * 4

    def work(i, rest):
        try:
            for _ in itertools.count():
                for _ in range(rest.randrange(4)):
                    time.sleep(rest.random() * 4e-3)
                    stops[i].check()
                stops[i].begin()
                together.wait(10)  # a collective: all hosts, or it never ends
                stops[i].done = stops[i].begun
        except preemption.Stopped:
            last[i] = stops[i].done

    threads = [
        threading.Thread(target=work, args=(i, random.Random(f"{seed} {i}")))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    for i in choose.sample(range(4), choose.randint(1, 4)):
        stops[i].ask()
        time.sleep(choose.random() * 0.01)
    for thread in threads:
        thread.join(20)
    for one in watches:
        one.leave()
    assert len(set(last)) == 1 and last[0] > 0


@pytest.mark.parametrize(
    ("text", "line"), [("", "OSError()"), (" \n", r"OSError(' \n')"), ("a\nb", "a")]
)
def test_a_store_that_never_answers_is_asked_now_and_then(monkeypatch, text, line):
    """Whatever it says, the thread that asks goes on."""
    times = []

    class Silent(Store):
        def key_value_dir_get(self, folder):
            times.append(time.monotonic())
            raise OSError(text) if text else OSError

    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "DEAD_SECONDS", 0.3)
    said, over = [], threading.Event()
    watch = watchdog.Watch(Silent(), 0, 1, lambda x: (said.append(x), over.set()))
    assert over.wait(20)
    watch.leave()
    assert said[0].startswith(f"process 0, the coordinator, is gone: {line}; the last")
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert len(pauses) > 1 and min(pauses) >= 0.02


def test_alone_nothing_is_joined_and_arrays_come_whole():
    with joined("", 0, -1):
        assert not jax.distributed.is_initialized()
        assert exchange("x", {"a": 1}) == [{"a": 1}]
    mesh = jax.make_mesh((8,), ("x",))
    sharding = jax.NamedSharding(mesh, jax.P("x"))
    array = np.arange(16)
    np.testing.assert_array_equal(on_host(put(array, sharding)), array)


def test_who_has_said_why_it_ends_has_no_last_words(capfd):
    """From whichever threads that is said, and however often."""
    words = watchdog.LastWords(0)
    both = [threading.Thread(target=words.cancel) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    words.cancel()
    assert capfd.readouterr().err == ""


KERNEL = (
    "from limr_jax.models.attention import ragged_decode",
    "ragged_decode.INTERPRET, ragged_decode.BLOCKS = True, (4,)",
)
BROKEN = (
    "def attend(*_, **__): raise NotImplementedError('no such layout')",
    "ragged_decode.attend = attend",
)
WRONG = (
    "right = ragged_decode.attend",
    "def attend(*x, **y): out, own = right(*x, **y); return 1.5 * out, own",
    "ragged_decode.attend = attend",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "planted, fault",
    [
        (
            BROKEN,
            "process 1: it does not compile (NotImplementedError: no such layout)",
        ),
        (WRONG, "it is 0.5 apart from XLA's, more than 0.001"),
    ],
)
def test_a_kernel_that_fails_on_one_host_is_taken_by_none(
    folder, tmp_path, planted, fault
):
    """A dry run, which ends before it would compile the steps."""
    print_model = (
        "from limr_jax import setup",
        "describe = setup.describe",
        "def told(run, config, **options):",
        "    print('refused', run.compute.model.refused_kernels, flush=True)",
        "    return describe(run, config, **options)",
        "setup.describe = told",
    )
    well = ran_with(tmp_path / "well.py", *KERNEL, *print_model)
    ill = ran_with(tmp_path / "ill.py", *KERNEL, *planted, *print_model)
    given = [*command(folder, tmp_path / "a"), "--dry_run"]
    said = start(folder, [[well, *given], [ill, *given]]).wait()
    assert [code for code, _ in said] == [0, 0], said
    for _, text in said:
        assert "refused ('ragged',)" in text
    assert said[0][1].count("warning: ") == 1 and "warning: " not in said[1][1]
    assert fault in said[0][1]


@pytest.mark.slow
def test_first_contact_of_two_hosts(folder, tmp_path):
    """Both take part in each measurement; here both write the same file."""
    held = ran_with(
        tmp_path / "held.py",
        *KERNEL,
        "from limr_jax.compilation import peaks",
        "peaks.ROUNDS = peaks.CALLS = 1",
    )
    given = [held, *command(folder, tmp_path / "a"), "--first_contact"]
    said = start(folder, [given, given]).wait()
    assert [code for code, _ in said] == [0, 0], said
    assert "share of bound" in said[0][1] and "share of bound" not in said[1][1]
    found = json.loads((tmp_path / "a.first_contact.json").read_text())
    assert found["devices"]["processes"] == 2 and found["devices"]["count"] == 4
    assert len(found["peaks"]["devices"]) == len(found["devices"]["memory"]) == 4
    assert not found["kernels"][0]["fault"]
    rows = {row["name"]: row for row in found["steps"]["programs"]}
    assert rows["update"]["measured_seconds"] > 0
