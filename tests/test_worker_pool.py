"""The pool outlives whatever its workers do."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax.numpy as jnp
import pytest

from limr_jax import worker_pool
from limr_jax.errors import InputError

TEST_WORKER = """
    import json, os, resource, signal, sys, time
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "hang":
            time.sleep(600)
        if job["do"] == "die":
            os._exit(3)
        if job["do"] == "fork" and os.fork() == 0:
            open(job["x"], "w").write(str(os.getpid()))
            time.sleep(600)  # with the worker's pipes open
        if job["do"] == "fork":
            while not os.path.exists(job["x"]):
                time.sleep(0.01)
            os._exit(3)
        if job["do"] == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
            bytearray(2**29)
        if job["do"] == "xcpu":
            os.kill(os.getpid(), signal.SIGXCPU)
        print(json.dumps({"pid": os.getpid(), "echo": job.get("x")}), flush=True)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    (tmp_path / "strange_worker.py").write_text(textwrap.dedent(TEST_WORKER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = worker_pool.WorkerPool(workers=2, wall_seconds=3.0, module="strange_worker")
    yield pool
    pool.close()


def test_order_is_kept_and_workers_are_reused(pool):
    assert pool.map([]) == []
    replies = pool.map([{"do": "echo", "x": k} for k in range(50)])
    assert [r["echo"] for r in replies] == list(range(50))
    again = pool.map([{"do": "echo", "x": k} for k in range(50)])
    assert {r["pid"] for r in again} <= {r["pid"] for r in replies}


@pytest.mark.slow
def test_hanging_and_dying_workers_are_replaced_and_the_batch_goes_on(pool):
    deeds = ["echo", "hang", "die", "echo", "xcpu", "echo", "memory", "echo"]
    jobs = [{"do": deed, "x": k} for k, deed in enumerate(deeds)]
    start = time.monotonic()
    replies = pool.map(jobs)
    assert time.monotonic() - start < 30
    assert [r.get("error") for r in replies] == [
        None, "timeout", "died", None, "timeout", None, "died", None
    ]  # fmt: skip
    assert [replies[k]["echo"] for k in (0, 3, 5, 7)] == [0, 3, 5, 7]


@pytest.mark.slow
def test_what_a_worker_starts_ends_with_it(pool, tmp_path):
    """A child that holds the pipes open is no worker's answer, and goes with it."""
    child = tmp_path / "child"
    start = time.monotonic()
    replies = pool.map([{"do": "fork", "x": str(child)}, {"do": "echo", "x": 1}])
    assert time.monotonic() - start < 30
    assert replies[0]["error"] in ("died", "timeout") and replies[1]["echo"] == 1
    wait_for_end(int(child.read_text()))


def test_no_item_of_the_grader_starts_a_process():
    """For users other than root; root's children end with the worker's group."""
    program = """
        import json, os, sys
        from limr_jax import worker_process

        def fork(line, seconds):
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                if os.fork() == 0:
                    os._exit(0)
                return {"forked": True}
            except BlockingIOError:
                return {"forked": False}

        worker_process.serve(fork)
    """
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "3", "1024"],
        input="{}\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.stdout.splitlines()[1:] == ['{"forked": false}'], made.stderr


def wait_for_end(pid: int) -> None:
    """Wait until a process of this number is gone, or dead and nobody's."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] in "ZX":
                    return
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} still runs")


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_worker.py").write_text("raise SystemError('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_pool, "_PAUSES", (0.0, 0.0))
    pool = worker_pool.WorkerPool(workers=1, module="broken_worker")
    with pytest.raises(InputError) as raised:
        pool.map([{"do": "echo"}])
    assert str(raised.value) == (
        "a grading process (-m broken_worker 3.0 1024) ended 3 times while it started: "
        "SystemError: no such luck; free processors or memory, or give fewer workers"
    )


def test_no_process_to_be_had_is_the_same_line(pool, monkeypatch):
    def full(*args, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_pool, "_PAUSES", (0.0,))
    monkeypatch.setattr(worker_pool.subprocess, "Popen", full)
    with pytest.raises(InputError) as raised:
        pool.map([{"do": "echo"}])
    assert str(raised.value) == (
        "a grading process (-m strange_worker 3.0 1024) ended 2 times while it "
        "started: [Errno 11] Resource temporarily unavailable; free processors or "
        "memory, or give fewer workers"
    )


def test_a_worker_that_dies_twice_while_it_starts_is_started_again(
    tmp_path, monkeypatch
):
    """The first time and when it is replaced, too."""
    starts = """
        import os, pathlib
        count = pathlib.Path(__file__).with_suffix(".count")
        count.write_text(count.read_text() + "." if count.exists() else ".")
        if len(count.read_text()) % 3:
            os._exit(1)
    """
    source = textwrap.dedent(starts) + textwrap.dedent(TEST_WORKER)
    (tmp_path / "frail_worker.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker_pool, "_PAUSES", (0.0, 0.0))
    pool = worker_pool.WorkerPool(workers=1, module="frail_worker")
    replies = pool.map([{"do": deed, "x": deed} for deed in ("echo", "die", "echo")])
    pool.close()
    assert [r.get("echo") for r in replies] == ["echo", None, "echo"]
    assert len((tmp_path / "frail_worker.count").read_text()) == 6


@pytest.mark.slow
def test_closed_while_it_works_a_pool_ends_at_once_and_starts_nothing(pool):
    ended = []

    def work():
        try:
            pool.map([{"do": "hang"}] * 50)
        except InputError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not all(worker.process for worker in pool._workers):
        time.sleep(0.01)
    pool.close()
    thread.join(timeout=20)
    assert ended == ["the grading processes were ended"]
    assert pool.map([{"do": "echo", "x": 1}])[0]["echo"] == 1


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.5])
def test_closed_while_its_workers_start_a_pool_leaves_none(
    tmp_path, monkeypatch, moment
):
    """A process that was killed as it started is not taken for a start that failed."""
    slow = "import time; time.sleep(1.0)\n" + textwrap.dedent(TEST_WORKER)
    (tmp_path / "slow_worker.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started, popen = [], subprocess.Popen

    def noted(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(worker_pool.subprocess, "Popen", noted)
    pool = worker_pool.WorkerPool(workers=2, module="slow_worker")
    said = []

    def work():
        try:
            pool.map([{"do": "echo"}] * 4)
        except InputError as error:
            said.append(str(error))

    thread, ending = threading.Thread(target=work), pool._ending
    thread.start()
    while pool._ending is ending:
        time.sleep(0.001)
    time.sleep(moment)
    pool.close()
    thread.join(timeout=0.9)  # a try again comes after a second
    assert not thread.is_alive() and said == ["the grading processes were ended"]
    assert len(started) <= 2 and all(x.poll() is not None for x in started)
    assert not any(worker.process for worker in pool._workers)


def test_a_worker_that_starts_slowly_is_waited_for_and_one_that_never_does_is_not(
    tmp_path, monkeypatch
):
    slow = "import time; time.sleep(1.0)\n" + textwrap.dedent(TEST_WORKER)
    (tmp_path / "slow_worker.py").write_text(slow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = worker_pool.WorkerPool(workers=1, wall_seconds=0.9, module="slow_worker")
    assert pool.map([{"do": "echo", "x": 3}])[0]["echo"] == 3
    pool.close()
    monkeypatch.setattr(worker_pool, "_START_SECONDS", 0.2)
    with pytest.raises(InputError, match="was not ready in 0.2 s while it started: it"):
        pool.map([{"do": "echo"}])


def test_large_and_odd_text_crosses_the_pipe(pool):
    texts = ["a" * 1_000_000, "\ud800", "\x00", "\n\r\u2028", "é∞"]
    replies = pool.map([{"do": "echo", "x": t} for t in texts])
    assert [r["echo"] for r in replies] == texts


def test_the_grader_itself_loads_no_jax():
    code = (
        "import sys, limr_jax.rewards.math.worker as w; "
        "assert w.matching_rule({'references': ['x+1'], 'answers': ['1+x']}) "
        "== 'value'; "
        "assert not {'jax', 'pickle5', 'torch'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_works_beside_jax_and_ends_with_the_parent(pool):
    assert float(jnp.sum(jnp.arange(4.0))) == 6.0  # XLA's threads are up
    pid = pool.map([{"do": "echo"}])[0]["pid"]
    os.kill(pid, 0)
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
    import sys
    from limr_jax import worker_pool
    pool = worker_pool.WorkerPool(workers=1, wall_seconds=60.0, module="strange_worker")
    print(pool.map([{"do": "echo"}])[0]["pid"], flush=True)
    pool.map([{"do": "hang"}]) if sys.argv[1] == "hang" else sys.stdin.read()
"""


@pytest.mark.parametrize(
    "sign, doing", [(signal.SIGINT, "hang"), (signal.SIGKILL, "wait")]
)
def test_no_worker_outlives_a_killed_parent(tmp_path, monkeypatch, sign, doing):
    (tmp_path / "strange_worker.py").write_text(textwrap.dedent(TEST_WORKER))
    root = os.path.dirname(os.path.dirname(worker_pool.__file__))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), doing],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with parent:
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(sign)
        parent.wait(timeout=20)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and os.path.exists(f"/proc/{worker}"):
            time.sleep(0.1)
    assert not os.path.exists(f"/proc/{worker}")
