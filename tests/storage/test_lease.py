"""One run a workdir, on a disk, on a disk of several machines, and on gs://.

Another machine is this one with another name (`elsewhere`). Its disk has no locks that
reach this one. Two real processes are in test_checkpoint.py and, on gs://, at the end.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from limr_jax.errors import InputError, shown
from limr_jax.storage import checkpoint, lease, metrics, rollout_dump, workdir

RUN = "gs://bucket/deep/run"
IDENTITY = {"config": {"num_steps": 3}}
ME = f"process {os.getpid()} on {socket.gethostname()}"
OTHER = {"id": "0", "host": "far", "pid": 7, "machine": "m", "space": "s", "began": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A lease that nobody renews is its owner's for 0.6 s."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.6)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.02)
    yield
    for path in [*lease._held]:
        lease.release(path)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """A workdir, and what sets how its lease is (None: nobody's)."""
    if request.param == "disk":
        folder = tmp_path / "run"
        folder.mkdir()

        def put(owner, age=0.0):
            path = folder / ".put"
            path.write_text(owner if isinstance(owner, str) else json.dumps(owner))
            os.utime(path, (time.time() - age,) * 2)
            path.rename(folder / ".lease")

        return str(folder), put

    bucket = request.getfixturevalue("held")

    def put(owner, age=0.0):
        text = owner if isinstance(owner, str) else json.dumps(owner)
        generation = bucket.objects.get("deep/run/.lease", (10**6, b""))[0] + 1
        bucket.objects["deep/run/.lease"] = generation, text.encode()
        bucket.updated["deep/run/.lease"] = time.time() - age

    return RUN, put


def standing(path) -> dict | None:
    """The lease in a workdir."""
    seen = workdir.workdir_path(path, ()) / ".lease"
    return json.loads(seen.read_text()) if seen.exists() else None


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_names_its_owner_beats_and_goes(place):
    path, _ = place
    before = set(threading.enumerate())
    workdir.claim(path, IDENTITY)
    owner = standing(path)
    assert f"process {owner['pid']} on {owner['host']}" == ME
    mine = lease._of(path)
    first = mine.mark
    wait_for(lambda: mine.mark != first)  # a sign of life
    assert standing(path) == owner
    workdir.claim(path, IDENTITY)  # by who has it
    workdir.release(path)
    assert standing(path) is None
    # Other tests of this process may have left leases of their own.
    started = [x for x in set(threading.enumerate()) - before if x.name == "lease"]
    wait_for(lambda: not any(x.is_alive() for x in started))
    workdir.claim(path, IDENTITY)


@pytest.mark.parametrize("owner", [OTHER, "", "\0\xff", "[1]"])
def test_one_without_a_heartbeat_is_taken_over_in_one_line(place, capsys, owner):
    path, put = place
    put(owner, age=100)
    workdir.claim(path, IDENTITY)
    name = "process 7 on far" if owner is OTHER else "another process"
    assert re.fullmatch(
        f"warning: taking over {path} from {name}, which gave its last sign of life "
        r"1\d\d s ago\n",
        capsys.readouterr().err,
    )
    assert standing(path)["pid"] == os.getpid()


def test_one_that_may_be_alive_is_waited_for(place, capsys, monkeypatch):
    monkeypatch.setattr(lease, "DEAD_SECONDS", 4.0)
    path, put = place
    put(OTHER, age=2.0)
    begun = time.monotonic()
    workdir.claim(path, IDENTITY)
    assert time.monotonic() - begun > 0.5
    waiting, taken = capsys.readouterr().err.splitlines()
    assert f"{path} was being written by process 7 on far " in waiting
    assert waiting.endswith(" s to see whether that process lives")
    assert taken.startswith(f"warning: taking over {path} from process 7 on far, which")


def test_one_that_is_let_go_meanwhile_is_free(place, held, capsys):
    path, put = place
    put(OTHER)

    def let_go():
        if path == RUN:
            del held.objects["deep/run/.lease"]
        else:
            os.unlink(f"{path}/.lease")

    threading.Timer(0.1, let_go).start()
    workdir.claim(path, IDENTITY)
    assert "taking over" not in capsys.readouterr().err


@pytest.mark.parametrize("host", ["far", "far\x1b[2J\nerror:"])
def test_one_that_is_alive_is_refused_in_one_line(place, monkeypatch, host):
    monkeypatch.setattr(lease, "DEAD_SECONDS", 30.0)
    path, put = place
    over = threading.Event()
    owner = OTHER | {"host": host}

    def beat():
        while not over.wait(0.1):
            put(owner)

    put(owner)
    threading.Thread(target=beat).start()
    try:
        with pytest.raises(InputError) as raised:
            workdir.claim(path, IDENTITY, flag="--out")
    finally:
        over.set()
    assert str(raised.value) == (
        f"{path} is being written by process 7 on {shown(host)}, whose last sign of "
        "life came 0 s ago; wait for it or stop it, or give another --out"
    )
    assert workdir.read_run(path, missing_ok=True) is None


def save(path):
    """What a run writes, each way that it has."""
    import jax.numpy as jnp

    state = {"x": jnp.arange(3.0)}
    log, dump = metrics.Metrics(path), rollout_dump.Dump(path)
    saver = checkpoint.Checkpointer(path)
    return {
        "numbers": lambda: log.step(1, {"loss": 1.0}),
        "rollouts": lambda: dump.add(1, [{"id": "a"}]),
        "checkpoint": lambda: saver.save(1, state, {}),
        "result": lambda: workdir.write_result(path, {"steps": 1}),
    }


@pytest.mark.parametrize("what", ["numbers", "rollouts", "checkpoint", "result"])
def test_who_has_lost_it_writes_nothing_more(place, what):
    path, put = place
    workdir.claim(path, IDENTITY)
    write = save(path)[what]
    put(OTHER)
    lease._of(path)._beaten = -1e9  # as if it had slept
    with pytest.raises(lease.Lost) as raised:
        write()
    assert str(raised.value) == (
        f"{path} has been taken over by process 7 on far, so this run ends and writes "
        "nothing more there; one run a workdir: stop one of them, or give it a workdir "
        "of its own"
    )
    found = [workdir.workdir_path(path, ()) / x for x in ("rollouts", "result.json")]
    assert not any(x.exists() for x in found)
    workdir.release(path)
    assert standing(path) == OTHER


def test_the_heartbeat_finds_out_by_itself(place):
    path, put = place
    workdir.claim(path, IDENTITY)
    put(OTHER)
    wait_for(lambda: lease.lost(path))
    with pytest.raises(lease.Lost):
        lease.require(f"{path}/a/folder/below")
    lease.require(f"{path}-of-another-name")


def test_lines_that_wait_are_not_written_where_another_writes(tmp_path, monkeypatch):
    workdir.claim(tmp_path, IDENTITY)
    log = metrics.Metrics(tmp_path)
    append = metrics.files.append
    monkeypatch.setattr(
        metrics.files, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    log.step(1, {"loss": 1.0})
    monkeypatch.setattr(metrics.files, "append", append)
    (tmp_path / ".lease").write_text(json.dumps(OTHER))
    with contextlib.suppress(lease.Lost):
        log.step(2, {"loss": 1.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_workdir_that_is_removed_ends_its_run(tmp_path):
    path = tmp_path / "run"
    workdir.claim(path, IDENTITY)
    writes = save(path)
    shutil.rmtree(path)
    for write in writes.values():
        with pytest.raises(lease.Lost, match="was removed while this run wrote there"):
            write()
    assert not path.exists()


def test_a_workdir_in_whose_place_another_run_begins(tmp_path):
    path = tmp_path / "run"
    workdir.claim(path, IDENTITY)
    path.rename(tmp_path / "moved")
    owner = OTHER | {"machine": lease._machine()}
    path.mkdir()
    (path / ".lease").write_text(json.dumps(owner))
    with pytest.raises(lease.Lost, match="has been taken over by process 7 on far"):
        lease.require(path)


def test_a_lease_that_somebody_removes_from_a_run_is_put_back(tmp_path):
    workdir.claim(tmp_path, IDENTITY)
    owner = standing(tmp_path)
    (tmp_path / ".lease").unlink()
    lease.require(tmp_path)
    assert standing(tmp_path) == owner


def test_a_full_disk_has_the_lock_alone(tmp_path, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("etils.epath.gpath.PosixGPath.write_text", full)
        lease.take(workdir.workdir_path(tmp_path), "--workdir")
    assert "no other machine sees that this run writes there" in capsys.readouterr().err
    lease.release(tmp_path)


def test_a_full_disk_with_the_lease_of_one_that_died(tmp_path, capsys, monkeypatch):
    """It is written once there is room; until then the lock alone guards the run."""
    (tmp_path / "run.json").write_text("{}")
    died = lease._owner() | {"id": "0", "pid": 2**22 + 1, "began": 5}
    (tmp_path / ".lease").write_text(json.dumps(died))

    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("etils.epath.gpath.PosixGPath.write_text", full)
        lease.take(workdir.workdir_path(tmp_path), "--workdir")
        lease.require(tmp_path)
        assert standing(tmp_path) == died
    lease.require(tmp_path)
    assert standing(tmp_path)["pid"] == os.getpid()
    # Whoever else writes it from now on has it.
    (tmp_path / ".lease").write_text(json.dumps(OTHER))
    with pytest.raises(lease.Lost, match="process 7 on far"):
        lease.require(tmp_path)


@pytest.mark.parametrize("pid", [math.inf, 10**400, 1.5, [1], "x", None])
def test_a_lease_of_a_process_that_is_none(tmp_path, pid):
    mine = lease._owner() | {"id": "0", "pid": pid}
    (tmp_path / ".lease").write_text(json.dumps(mine))
    lease.refuse_alive(workdir.workdir_path(tmp_path), "--workdir")
    workdir.claim(tmp_path, IDENTITY)


def test_on_its_own_machine_one_that_died_is_over_at_once(tmp_path, capsys):
    died = subprocess.Popen(["true"])
    died.wait()
    mine = lease._owner() | {"id": "0", "pid": died.pid}
    (tmp_path / ".lease").write_text(json.dumps(mine))
    begun = time.monotonic()
    workdir.claim(tmp_path, IDENTITY)
    assert time.monotonic() - begun < 0.5 and capsys.readouterr().err == ""


def test_in_a_bucket_too_and_it_is_said(held, capsys):
    died = subprocess.Popen(["true"])
    died.wait()
    mine = lease._owner() | {"id": "0", "pid": died.pid}
    held.objects["deep/run/.lease"] = 10**6, json.dumps(mine).encode()
    held.updated["deep/run/.lease"] = time.time() + 1000  # however fresh it is
    workdir.claim(RUN, IDENTITY)
    assert f"taking over {RUN} from process {died.pid} on " in capsys.readouterr().err


def test_who_is_alive_here_is_known_before_anything_is_loaded(place):
    """But not of another machine: only its heartbeat says it, of which `take` waits."""
    path, put = place
    path = workdir.workdir_path(path)
    lease.refuse_alive(path, "--workdir")
    alive = subprocess.Popen(["sleep", "60"])
    owner = lease._owner() | {"pid": alive.pid, "began": lease._began(alive.pid)}
    try:
        put(owner | {"machine": "another"})
        lease.refuse_alive(path, "--workdir")
        put(owner | {"began": 1})  # its number is another process's by now
        lease.refuse_alive(path, "--workdir")
        put(owner)
        name = f"process {alive.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=f"is being written by {name}"):
            lease.refuse_alive(path, "--workdir")
    finally:
        alive.kill()
    # Killed, and not waited for yet.
    wait_for(lambda: lease._began(alive.pid) is None)
    lease.refuse_alive(path, "--workdir")
    alive.wait()


@pytest.mark.parametrize("field", ["machine", "space"])
def test_a_number_of_another_machine_or_container_says_nothing(held, field):
    mine = lease._owner() | {"pid": os.getpid(), field: "another"}
    assert not lease._Bucket(RUN).is_over(mine)
    assert lease._Bucket(RUN).is_over(lease._owner())
    alive = subprocess.Popen(["sleep", "60"])
    other = lease._owner() | {"pid": alive.pid, "began": lease._began(alive.pid)}
    assert not lease._Bucket(RUN).is_over(other)
    alive.kill()
    alive.wait()
    assert lease._Bucket(RUN).is_over(other)


def test_of_many_that_begin_at_once_one_has_it(held):
    start, has = threading.Barrier(8), []

    def begin(number):
        one = lease._Lease(RUN, lease._Bucket(RUN), lease._owner())
        one.owner |= {"machine": str(number)}
        seen = one.place.read()
        assert seen is None
        start.wait()
        with contextlib.suppress(lease._Changed):
            has.append((number, one.place.write(one.owner, None)))

    threads = [threading.Thread(target=begin, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(has) == 1
    owner = json.loads(held.objects["deep/run/.lease"][1])
    assert owner["machine"] == str(has[0][0])


def test_the_later_of_two_that_begin_at_once_is_refused(held, monkeypatch):
    put = lease._Bucket.write

    def late(self, owner, mark):
        held.objects["deep/run/.lease"] = 10**6, json.dumps(OTHER).encode()
        return put(self, owner, mark)

    monkeypatch.setattr(lease._Bucket, "write", late)
    with pytest.raises(InputError, match="is being written by process 7 on far, whose"):
        workdir.claim(RUN, IDENTITY)
    assert "deep/run/run.json" not in held.objects


def test_an_answer_that_was_lost_is_no_loss(held):
    """The second try finds the first one's object: another generation, the same id."""
    workdir.claim(RUN, IDENTITY)
    mine = lease._of(RUN)
    with mine._turn:
        generation, text = held.objects["deep/run/.lease"]
        held.objects["deep/run/.lease"] = generation + 10**6, text
    lease.require(RUN, sure=True)
    assert mine.mark >= generation + 10**6


def test_a_network_that_fails_for_a_while_loses_nothing(held):
    workdir.claim(RUN, IDENTITY)
    held.denied.add("objects.create")
    mine = lease._of(RUN)
    time.sleep(0.2)
    lease.require(RUN, sure=True)
    held.denied.clear()
    first = mine.mark
    wait_for(lambda: mine.mark != first)
    lease.require(RUN)


def test_a_fork_that_ends_lets_nothing_go(place, monkeypatch):
    """As a user's reward function may make one; its exit handlers run."""
    path, put = place
    workdir.claim(path, IDENTITY)
    mine, pid = lease._of(path), os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(lease.os, "getpid", lambda: pid + 1)
        assert lease._of(path) is None
        mine.release()
    lease.require(path, sure=True)
    assert standing(path)["pid"] == pid


def test_one_from_the_future_is_as_old_as_this_moment(place):
    path, put = place
    put(OTHER, age=-1000)
    begun = time.monotonic()
    workdir.claim(path, IDENTITY)
    assert 0.5 < time.monotonic() - begun < 60


def test_what_was_written_while_it_was_waited_for_counts(tmp_path, capsys):
    """The one that had it has begun another run there, and ended."""
    (tmp_path / ".lease").write_text(json.dumps(OTHER))
    other = json.dumps({"config": {"num_steps": 3, "seed": 5}})

    def end():
        (tmp_path / "run.json").write_text(other)
        (tmp_path / ".lease").unlink()

    threading.Timer(0.2, end).start()
    with pytest.raises(InputError, match="holds a run that differs in config.seed"):
        workdir.claim(tmp_path, IDENTITY)
    assert (tmp_path / "run.json").read_text() == other
    assert not lease._held


def test_what_kills_have_left_goes_with_the_next_claim(tmp_path):
    workdir.claim(tmp_path, IDENTITY)
    workdir.release(tmp_path)
    for name in (".run.12.tmp.json", "..lease.12.tmp", ".result.3.tmp.json"):
        (tmp_path / name).write_text("half")
    for name in (".mine", "notes.tmp", "run.12.tmp.json"):
        (tmp_path / name).write_text("whole")
    workdir.claim(tmp_path, IDENTITY)
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".lease", ".lock", ".mine", "notes.tmp", "run.12.tmp.json", "run.json"]
    )


CLAIMS = f"""
import time
from limr_jax.storage import lease
from limr_jax.storage.workdir import claim

lease.BEAT_SECONDS = 0.05
claim({RUN!r}, {IDENTITY!r})
print("claimed", flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_two_processes_do_not_write_one_bucket(held, monkeypatch, capsys):
    """A process that is alive is refused; one that was killed is not waited for."""
    monkeypatch.setattr(lease, "DEAD_SECONDS", 30.0)
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIMS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    name = f"process {process.pid} on {socket.gethostname()}"
    try:
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(InputError, match=f"is being written by {name}, whose"):
            workdir.claim(RUN, IDENTITY)
    finally:
        process.kill()
        process.communicate()
    capsys.readouterr()
    begun = time.monotonic()
    workdir.claim(RUN, IDENTITY)
    assert time.monotonic() - begun < 15
    assert f"warning: taking over {RUN} from {name}, which" in capsys.readouterr().err
