"""launch/slice.sh against a gcloud that records its calls and has hosts on this disk.

The fake's ssh runs the command under a home folder for each worker, so that what
would happen on the hosts (copy, install, detached run, logs, stop) really happens.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from slice_cloud import ROOT, WORKERS, ZONE, Cloud, script

from limr_jax.compilation import slices


def wait_for(truth, seconds: float = 120.0) -> None:
    """Patience, not a limit of what is tested: other work may have the cores."""
    end = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for process in cloud.processes:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    for path in cloud.fake.glob("home_*/limr_jax_logs/pid"):
        try:  # a session of its own each: nothing else is in the group
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            continue


def test_shellcheck_is_clean():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert checker, "shellcheck is missing: pip install -e '.[test]'"
    scripts = sorted(str(path) for path in (ROOT / "launch").glob("*.sh"))
    found = subprocess.run([checker, *scripts], capture_output=True, text=True)
    assert len(scripts) >= 2
    assert found.stdout == "" and found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "kind, accelerator, version",
    [
        ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_version_of_the_type_and_is_idempotent(
    cloud, kind, accelerator, version
):
    cloud.run("create", "s", "--type", kind, ZONE, "--spot", "--project=p")
    cloud.run("create", "s", "--type", kind, ZONE, "--spot", "--project=p")
    assert cloud.calls("create") == [
        f"compute tpus tpu-vm create s --accelerator-type={accelerator} "
        f"--version={version} --spot {ZONE} --quiet --project=p"
    ]


def test_create_makes_a_preempted_slice_anew_and_starts_a_stopped_one(cloud):
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    cloud.set_state("PREEMPTED")
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    assert len(cloud.calls("delete")) == 1
    assert len(cloud.calls("create")) == 2
    other = cloud.run("create", "s", "--type", "v4-8", ZONE, code=2)
    assert "is there, a v4-32, not a v4-8" in other


@pytest.mark.parametrize("said, shown", [("True", ", spot"), ("False", ""), ("", "")])
def test_whether_it_is_a_spot_slice(cloud, said, shown):
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    fields = ("CREATING", "v4-32", "tpu-ubuntu2204-base", said)
    (cloud.fake / "slice").write_text("\t".join(fields) + "\n")
    line = f"s: CREATING, v4-32 in us-central2-b{shown}\n"
    assert cloud.run("status", "s", ZONE).endswith(line)


def test_dry_run_prints_each_command_and_runs_none(cloud):
    said = cloud.run("create", "s", "--type", "v5e-16", ZONE, "--spot", "--dry_run")
    assert (
        "gcloud compute tpus tpu-vm create s --accelerator-type=v5litepod-16 "
        f"--version=v2-alpha-tpuv5-lite --spot {ZONE} --quiet\n"
    ) in said
    said = cloud.run("setup", "s", ZONE, "--dry_run")
    assert "tpu-vm scp " in said and "--worker=all" in said
    words = ("--", "python", "launch/tpu.py", "--workdir", "gs://b/r", "--x=it's")
    said = cloud.run("run", "s", ZONE, "--dry_run", *words)
    assert "tpu-vm ssh s --worker=all '--command=bash ~/limr_jax/launch/" in said
    # Pasted into a shell and then into the host's, it is the same word again.
    line = next(line for line in said.splitlines() if " ssh " in line)
    command = subprocess.run(
        ["bash", "-c", f'gcloud() {{ printf "%s\\n" "$7"; }}; {line}'],
        capture_output=True,
        text=True,
    ).stdout
    assert command.endswith("--workdir gs://b/r '--x=it'\\''s'\n")
    said = cloud.run("check", "s", ZONE, "--dry_run", "--type", "v5e-16")
    assert "slice_host.sh check --config configs/v5e_16.py' " in said
    assert " scp s:limr_jax_logs/check.first_contact.json " in said
    for verb in ("logs", "status", "stop", "delete"):
        said = cloud.run(verb, "s", ZONE, "--dry_run")
        assert "gcloud compute tpus tpu-vm describe s " in said
    assert not (cloud.fake / "calls").exists()
    # It needs no gcloud either.
    (cloud.fake / "bin" / "gcloud").unlink()
    cloud.environment["PATH"] = "/usr/bin:/bin"
    cloud.run("delete", "s", ZONE, "--dry_run")


def test_setup_copies_the_checkout_to_all_hosts_and_installs_it(cloud):
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    (cloud.checkout / "new.py").write_text("not in git yet")
    cloud.run("setup", "s", ZONE)
    (cloud.checkout / "old name.py").unlink()  # deleted, and git has not been told
    cloud.run("setup", "s", ZONE)
    for worker in range(WORKERS):
        code = cloud.home(worker) / "limr_jax"
        copied = sorted(p.relative_to(code) for p in code.rglob("*") if p.is_file())
        assert [str(path) for path in copied] == [
            ".gitignore",
            ".slice_files",
            "launch/slice.sh",
            "launch/slice_host.sh",
            "new.py",
        ]
        assert (cloud.home(worker) / "python_calls").read_text().splitlines() == [
            "-m pip install --user --upgrade uv",
            "-m uv venv --seed --python 3.12 " + str(code.parent / "limr_jax_venv"),
        ]
        pip = (cloud.home(worker) / "pip_calls").read_text().splitlines()
        assert pip == ["-m pip install -e .[tpu]"] * 2


FIRST_CONTACT = """
import os, pathlib, sys
print("measured", sys.argv[1:], os.environ["LIMR_JAX_SLICE"])
if "--config=wrong.py" in sys.argv:
    sys.exit("error: wrong.py is no config")
pathlib.Path(sys.argv[-1] + ".first_contact.json").write_text("{}")
"""


def test_check_measures_on_all_hosts_and_brings_the_json(cloud, tmp_path, monkeypatch):
    """In the place of launch/tpu.py a script; tests/compilation has the real one."""
    monkeypatch.chdir(tmp_path)  # where slice.sh is started
    script(cloud.checkout / "launch" / "tpu.py", FIRST_CONTACT)
    cloud.ready()
    said = cloud.run("check", "s", ZONE)
    for worker in range(WORKERS):
        flags = ["--config", "configs/v4_32.py", "--first_contact", "--workdir"]
        flags.append(str(cloud.home(worker) / "limr_jax_logs" / "check"))
        assert f"measured {flags} {worker}\n" in said
    assert said.endswith("lies in s.first_contact.json: please send it back\n")
    here = pathlib.Path("s.first_contact.json")
    assert here.read_text() == "{}"
    here.unlink()
    said = cloud.run("check", "s", ZONE, "--", "--config=wrong.py", code=1)
    assert "error: checking s: wrong.py is no config\n" in said
    assert not here.exists()
    cloud.run("run", "s", ZONE, "--no_watch", "--", "sleep", "99")
    said = cloud.run("check", "s", ZONE, code=1)
    assert "error: checking s: worker 0: a run is going; end it first" in said


def test_a_slice_without_a_config_of_its_own_wants_one(cloud):
    cloud.run("create", "s", "--type", "v4-16", ZONE)
    said = cloud.run("check", "s", ZONE, code=2)
    assert "no config is written for v4-16; give one: " in said


@pytest.mark.parametrize("slice_type", sorted(slices.SLICES))
def test_check_knows_every_config_that_is_written_for_a_slice(slice_type):
    """v4_8.py stands for v4-8, v5e_8.py for v5litepod-8."""
    name = slice_type.replace("v5litepod", "v5e").replace("-", "_")
    path = ROOT / "configs" / f"{name}.py"
    source = (ROOT / "launch/slice.sh").read_text()
    function = source[source.index("config_of()") :].partition("\n}\n")[0] + "\n}\n"
    said = subprocess.run(
        ["bash", "-c", f"{function}config_of {slice_type}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert said == (f"configs/{name}.py" if path.exists() else "")


def test_a_failed_installation_is_one_line_with_the_worker(cloud):
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    script(cloud.fake / "host_bin" / "python3", "#!/bin/bash\necho no uv; exit 1\n")
    said = cloud.run("setup", "s", ZONE, code=1)
    assert "error: setting up s: worker 0: the installation failed" in said
    assert "no uv\n" in said


@pytest.mark.slow
def test_run_is_detached_on_all_workers_and_stop_lets_it_save(cloud):
    cloud.ready()
    program = (
        "import os, signal, sys, time\n"
        "def save(*_): print('saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('here', os.getcwd(), sys.argv[1:])\n"
        "time.sleep(100)\n"
    )
    words = ("--", "python", "-c", program, "two words", "it's", "$HOME")
    cloud.run("run", "s", ZONE, "--no_watch", *words)
    for worker in range(WORKERS):
        # Shown at once though it goes on: the output is not buffered.
        wait_for(lambda worker=worker: "\nhere" in cloud.log(worker))
        line = f"here {cloud.home(worker) / 'limr_jax'} "
        assert line + "['two words', \"it's\", '$HOME']\n" in cloud.log(worker)
    pids = [cloud.pid(worker) for worker in range(WORKERS)]
    cloud.run("run", "s", ZONE, "--no_watch", *words)  # idempotent
    assert [cloud.pid(worker) for worker in range(WORKERS)] == pids
    said = cloud.run("status", "s", ZONE)
    assert said == (
        "s: READY, v4-32 in us-central2-b\n"
        f"worker 0: running, process {pids[0]}\n"
        f"worker 1: running, process {pids[1]}\n"
    )
    other = cloud.run("run", "s", ZONE, "--no_watch", "--", "sleep", "1", code=1)
    assert "worker 0: another run is going" in other
    assert "a run is going" in cloud.run("setup", "s", ZONE, code=1)
    lines = cloud.run("logs", "s", ZONE, "--no_follow", "--lines=1").splitlines()
    assert [line[:8] for line in lines] == ["[0] here", "[1] here"]
    only = cloud.run("logs", "s", ZONE, "--no_follow", "--worker=1")
    assert "[1] here" in only and "[0]" not in only
    cloud.run("stop", "s", ZONE)
    for worker in range(WORKERS):
        assert cloud.log(worker).endswith("saved\n")
    assert "worker 1: stopped" in cloud.run("status", "s", ZONE)
    assert "nothing runs" in cloud.run("stop", "s", ZONE)


def test_logs_follow_until_the_reader_goes(cloud):
    cloud.ready()
    cloud.run("run", "s", ZONE, "--no_watch", "--", "bash", "-c", "echo one; sleep 99")
    reader = cloud.start("logs", "s", ZONE, "--worker=0")
    while reader.stdout.readline() != "[0] one\n":
        pass
    path = cloud.home(0) / "limr_jax_logs" / "worker-0.log"
    with path.open("a") as file:
        file.write("two\n")
    assert reader.stdout.readline() == "[0] two\n"
    with path.open("a") as file:
        file.write("three\n")
    assert reader.stdout.readline() == "[0] three\n"
    os.killpg(reader.pid, signal.SIGINT)  # Ctrl-C
    reader.communicate(timeout=30)
    assert "worker 0: running" in cloud.run("status", "s", ZONE)


COMMAND = (
    'echo "$0" >>$HOME/../starts; while [[ ! -f $HOME/../done ]]; do sleep .05; done'
)


def test_a_preempted_slice_is_made_anew_with_the_same_command(cloud):
    cloud.run("create", "s", "--type", "v4-32", ZONE, "--spot")
    cloud.run("setup", "s", ZONE)
    starts = cloud.fake / "starts"
    words = ("--", "bash", "-c", COMMAND, "--workdir=gs://b/r")
    watcher = cloud.start("run", "s", ZONE, "--poll=0.1", *words)
    wait_for(lambda: starts.exists() and len(starts.read_text().split()) == WORKERS)
    (cloud.checkout / "edited.py").write_text("later than the run's start")
    capacity = 'ERROR: (gcloud.x) {\n  "code": 8,\n  "message": "no more capacity"\n}\n'
    (cloud.fake / "deny_create").write_text(capacity)
    pids = [cloud.pid(worker) for worker in range(WORKERS)]
    # First: a run that breaks off on a slice that is READY is started again there.
    cloud.set_state("PREEMPTED")
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
    wait_for(lambda: len(cloud.calls("create")) >= 3)  # it goes on asking
    (cloud.fake / "deny_create").unlink()
    wait_for(lambda: len(starts.read_text().split()) == 2 * WORKERS)
    (cloud.fake / "done").touch()
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, out + err
    assert "s is PREEMPTED; making it anew" in out
    assert "the same command runs on it" in out
    assert out.endswith("finished on all hosts\n")
    assert starts.read_text().split() == ["--workdir=gs://b/r"] * 2 * WORKERS
    # As it was made: type, version and spot come from the slice itself.
    assert len(set(cloud.calls("create"))) == 1
    # The code that the run began with, not what the checkout has become.
    assert not (cloud.home(0) / "limr_jax" / "edited.py").exists()


@pytest.mark.parametrize("how", ["lost", "interrupted"])
def test_a_host_that_restarts_has_the_run_started_again_on_all(cloud, how):
    cloud.ready()
    starts = cloud.fake / "starts"
    words = ("--", "bash", "-c", COMMAND, "again")
    watcher = cloud.start("run", "s", ZONE, "--poll=0.1", *words)
    wait_for(lambda: starts.exists() and len(starts.read_text().split()) == WORKERS)
    # A crash kills without a word; a shutdown for maintenance sends SIGTERM first.
    sign = signal.SIGKILL if how == "lost" else signal.SIGTERM
    os.killpg(cloud.pid(1), sign)
    wait_for(lambda: len(starts.read_text().split()) == 2 * WORKERS)
    cloud.run("stop", "s", ZONE)
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 0, out + err
    assert "broken off on part of the hosts" in out
    assert out.endswith("stopped by hand\n")
    assert len(cloud.calls("create")) == 1


def test_a_run_that_fails_is_not_started_again(cloud):
    cloud.ready()
    words = ("--", "bash", "-c", "echo the reason; exit 3")
    said = cloud.run("run", "s", ZONE, "--poll=0.1", *words, code=1)
    assert "worker 0: failed with exit code 3\n" in said
    assert "[1] the reason\n" in said
    assert "error: the run failed on s" in said
    assert cloud.log(0).count("===") == 1  # the line at the head of each start


def test_a_slice_deleted_while_watched_is_not_made_anew(cloud):
    cloud.ready()
    words = ("--", "bash", "-c", COMMAND, "x")
    watcher = cloud.start("run", "s", ZONE, "--poll=0.1", *words)
    wait_for(lambda: (cloud.fake / "starts").exists())
    for worker in range(WORKERS):
        wait_for(lambda worker=worker: cloud.log(worker))
        # The watcher, which has missed the one before it, may have ended this one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(cloud.pid(worker), signal.SIGKILL)
    cloud.run("delete", "s", ZONE, "--yes")
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 2 and "s is gone" in err
    assert len(cloud.calls("create")) == 1


def test_delete_wants_the_name_typed_or_yes(cloud):
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    for typed in ("", "\n", "y\n", "S\n"):
        assert "not deleted" in cloud.run("delete", "s", ZONE, typed=typed, code=2)
    assert cloud.calls("delete") == []
    cloud.run("delete", "s", ZONE, typed="s\n")
    assert cloud.calls("delete") == [f"compute tpus tpu-vm delete s {ZONE} --quiet"]
    assert "there is no slice s" in cloud.run("delete", "s", ZONE)  # idempotent
    cloud.run("create", "s", "--type", "v4-32", ZONE)
    cloud.run("delete", "s", ZONE, "--yes")
    assert len(cloud.calls("delete")) == 2


@pytest.mark.parametrize(
    "words, reason",
    [
        (["lunch", "s"], "unknown verb 'lunch'"),
        (["create", "s", ZONE], "create needs --type"),
        (["create", "s", "--type=v4-32"], "--zone is missing"),
        (["create", "s", "--type=v3-8", ZONE], "unknown --type v3-8"),
        (["create", ZONE, "--type=v4-32"], "the slice's name ''"),
        (["create", "S_1", ZONE, "--type=v4-32"], "the slice's name 'S_1'"),
        (["create", "s", "--type"], "--type needs a value"),
        (["create", "s", "--tpye=v4-32", ZONE], "unknown flag --tpye"),
        (["run", "s", "python", "x.py", ZONE], "a command goes after --"),
        (["run", "s", ZONE], "run needs a command"),
        (["run", "s", ZONE, "--", "python", "launch/tpu.py"], "--workdir gs://"),
        (["setup", "s", ZONE], "there is no slice s"),
        (["run", "s", ZONE, "--", "true"], "there is no slice s"),
        (["logs", "s", ZONE, "--lines=x"], "--lines x is not a number"),
        (["stop", "s", ZONE, "--poll=x"], "--poll x is not"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_done(cloud, words, reason):
    said = cloud.run(*words, code=2)
    assert reason in said and len(said.splitlines()) == 1
    assert cloud.calls("create") == [] == cloud.calls("ssh")


@pytest.mark.parametrize(
    "answer, remedy",
    [
        (
            "ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota "
            "limit 'TPUV4PodPerProjectPerZone' has been exceeded. Limit: 0\n",
            "limit 'TPUV4PodPerProjectPerZone' has been exceeded. Limit: 0; ask for",
        ),
        (
            'ERROR: (gcloud.compute.tpus.tpu-vm.create) {\n  "code": 8,\n  "message": '
            '"There is no more capacity in the zone"\n}\n',
            "try again later, in another zone or with --spot",
        ),
        (
            "ERROR: (gcloud.compute.tpus.tpu-vm.create) You do not currently have an "
            "active account selected.\nPlease run:\n\n  $ gcloud auth login\n",
            "run gcloud auth login",
        ),
        (
            "ERROR: (gcloud.compute.tpus.tpu-vm.create) PERMISSION_DENIED: Cloud TPU "
            "API has not been used in project 1 before\n",
            "gcloud services enable tpu.googleapis.com",
        ),
    ],
)
def test_what_the_cloud_refuses_is_one_line_with_a_remedy(cloud, answer, remedy):
    (cloud.fake / "deny_create").write_text(answer)
    said = cloud.run("create", "s", "--type=v4-32", ZONE, code=1).splitlines()
    assert len(said) == 2 and said[1].startswith("error: making s: ")
    assert remedy in said[1]


def test_a_slice_without_setup_and_a_machine_without_gcloud(cloud):
    cloud.run("create", "s", "--type=v4-32", ZONE)
    said = cloud.run("run", "s", ZONE, "--", "true", code=1)
    assert "launch/slice.sh setup comes first" in said
    (cloud.fake / "bin" / "gcloud").unlink()
    cloud.environment["PATH"] = str(cloud.fake / "bin")
    for tool in ("bash", "env", "dirname", "tr"):
        (cloud.fake / "bin" / tool).symlink_to(shutil.which(tool))
    said = cloud.run("status", "s", ZONE, code=2)
    assert "gcloud is not on PATH" in said
