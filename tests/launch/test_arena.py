"""launch/arena.py: which runs it starts, what it keeps, and (soak) all of it."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from tiny_run import FIELDS, ROOT, write_problems

from limr_jax.config import load
from limr_jax.data.problems import load_problems
from limr_jax.errors import InputError
from limr_jax.evaluation.trained_policy import read_config
from limr_jax.storage import metrics
from limr_jax.storage.workdir import write_json, write_result
from limr_jax.studies import arena, jobs, oracle, subsets

LAUNCH = runpy.run_path(str(ROOT / "launch/arena.py"))
CONFIG = """
from configs import base
from limr_jax.errors import choose

def get_config(argument="ten"):
    c = base.get_config()
    c.data.train = choose({files}, argument, "regime")
    c.data.eval = {held_out!r}
    c.evaluation.every = 4
    c.prompts_per_step = 4
    return c
"""


@pytest.fixture
def command(tmp_path):
    """(folder, the command's arguments without arms): two regimes of a tiny run."""
    files = {
        "ten": str(write_problems(tmp_path / "ten.jsonl", 10)),
        "six": str(write_problems(tmp_path / "six.jsonl", 6)),
    }
    held_out = str(write_problems(tmp_path / "eval.jsonl", 3, add=2))
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs/regimes.py"
    file.write_text(CONFIG.format(files=files, held_out=held_out))
    fields = FIELDS | {"rollout.max_response_length": 4, "group_size": 4}
    # What the arms set is not for the command line.
    del fields["num_steps"], fields["prompts_per_step"]
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    named = {"out": tmp_path / "out", "record": tmp_path / "arena.jsonl"}
    flags = [f"--{name}={value}" for name, value in named.items()]
    return tmp_path, [f"--config={file}", *overrides, *flags, "--regimes=ten,six"]


@pytest.fixture
def started(monkeypatch):
    """The jobs that were started; each leaves 10 tokens a step, and its evaluations."""
    runs = []

    def parsed(words):
        """The config that launch/tpu.py makes of a job's command."""
        flags = {"fork": "", "step": -1}
        config, _ = load.load(
            list(words[1:]),
            kind="base",
            flags=flags,
            run_flag="fork",
            run_config=read_config,
        )
        return config.to_dict()

    def run_all(some, cache, *, seconds):
        for job in some:
            runs.append(job)
            assert parsed(job.command) == job.config
            job.workdir.mkdir(parents=True, exist_ok=True)
            write_json(job.workdir / "run.json", {"config": job.config})
            with metrics.Metrics(job.workdir, step=0) as log:
                for step in range(1, job.steps + 1):
                    numbers = {"tokens": 10, "rollouts": 8, "signal_groups": 1}
                    log.step(step, numbers | {"seconds": 1.0})
                for step in range(0, job.steps + 1, 4):
                    log.evaluation(step, {"accuracy": step / 100})
            write_result(job.workdir, {"params_digest": "x"})
        return True

    monkeypatch.setattr(jobs, "run_all", run_all)
    return runs


def test_every_regime_has_every_arm_with_every_seed(command, started, capsys):
    folder, argv = command
    argv = [*argv, "--arms=uniform,CDAS", "--seeds=2", "--tokens=300"]
    assert LAUNCH["main"](argv) == 0
    assert [job.name for job in started] == [
        f"{regime}, {arm}, seed {seed}"
        for regime in ("ten", "six")
        for seed in (0, 1)
        for arm in ("uniform", "CDAS")
    ]
    first = started[1]
    assert first.config["sampler"]["name"] == "cdas" and first.config["seed"] == 0
    assert first.config["data"]["train"] == str(folder / "ten.jsonl")
    record = arena.Record(folder / "arena.jsonl")
    kept = record.run("six", "CDAS", 1)
    # 300 tokens are 30 steps, between the evaluations of steps 28 and 32.
    assert kept["figures"]["accuracy"] == pytest.approx(0.30)
    assert (kept["steps"], kept["rollouts"]) == (30, 240)
    said = capsys.readouterr().out
    assert "8 runs are left" in said
    assert json.loads(said.splitlines()[-1])["left"] == 0
    page = (folder / "out/arena.md").read_text()
    assert "## six\n" in page and "| CDAS | 2 | 30.0 [30.0, 30.0] |" in page
    # All of it is on record: nothing runs, on whichever machine.
    assert LAUNCH["main"]([*argv, f"--out={folder / 'elsewhere'}"]) == 0
    assert len(started) == 8


def test_a_run_goes_on_until_it_has_its_tokens(command, started):
    folder, argv = command
    argv = [*argv, "--arms=uniform", "--seeds=2", "--tokens=390", "--regimes=ten"]
    assert LAUNCH["main"](argv) == 0
    # 320 tokens after 32 steps, so 39 are needed; up to the next evaluation.
    assert [job.steps for job in started] == [32, 40, 40]
    assert started[0].workdir == started[1].workdir != started[2].workdir
    # Stopped in its second part and not on record, it goes on from there.
    (folder / "arena.jsonl").unlink()
    (started[1].workdir / "result.json").unlink()
    assert LAUNCH["main"](argv) == 0
    assert [job.steps for job in started[3:]][:1] == [40]


def test_forks_go_on_from_uniforms_run(command, started, capsys):
    folder, argv = command
    argv = [*argv, "--arms=uniform,CDAS", "--seeds=1", "--tokens=320", "--regimes=ten"]
    assert LAUNCH["main"]([*argv, "--fork_at=16"]) == 0
    trunk, fork = started
    assert "--fork" not in trunk.command
    words = ("--fork", str(folder / "out/ten/uniform/seed-0"), "--step", "16")
    assert fork.command[1:5] == words
    assert trunk.config["checkpoint"]["every"] == fork.config["checkpoint"]["every"]
    assert (
        trunk.config["checkpoint"] | {"every": 16, "keep": 100}
        == (trunk.config["checkpoint"])
    )
    # Forks have a step of their own. Where the trunk has the tokens there is none.
    late = [*argv, "--fork_at=28", f"--record={folder / 'late.jsonl'}"]
    late += [f"--out={folder / 'late'}"]
    with pytest.raises(InputError) as error:
        LAUNCH["main"](late)
    assert str(error.value) == (
        "--fork_at=28 is after at least 448 tokens, and arms are compared at "
        "--tokens=320: give an earlier step, or more tokens"
    )
    assert LAUNCH["main"]([*late, "--tokens=450"]) == 0
    starts = [(job.steps, "--fork" in job.command) for job in started[2:]]
    assert starts == [(32, False), (48, False), (32, True), (48, True)]
    # What responses of more than one token come to is known when the trunk is there.
    few = [*argv, "--fork_at=16", "--tokens=150", "--config.group_size=2"]
    few += [f"--record={folder / 'few.jsonl'}", f"--out={folder / 'few'}"]
    assert LAUNCH["main"](few) == 1
    assert "CDAS, seed 0: failed, --fork_at=16 is after 160 tokens" in (
        capsys.readouterr().out
    )
    # What stands on record of forks is not what begins for itself.
    with pytest.raises(InputError, match="of other settings"):
        LAUNCH["main"](argv)


def test_the_oracles_parts_go_on_from_one_another(command, started, monkeypatch):
    folder, argv = command
    asked = []

    def write_scores(config, path, *, workdir, step, samples, seed):
        asked.append((workdir and workdir.name, step, samples, seed))
        path.write_text(json.dumps({"id": "1", "score": 0.0}) + "\n")

    monkeypatch.setattr(oracle, "write_scores", write_scores)
    argv = [*argv, "--arms=oracle", "--seeds=1", "--tokens=330", "--regimes=ten"]
    assert LAUNCH["main"](argv) == 0
    assert asked == [
        (None, 0, 64, 1000),
        ("part-0", 16, 64, 1001),
        ("part-1", 32, 64, 1002),
    ]
    first, second, third = started
    assert [job.steps for job in started] == [16, 32, 48]
    assert "--fork" not in first.command
    assert second.command[1:5] == ("--fork", str(first.workdir), "--step", "16")
    assert third.command[1:5] == ("--fork", str(second.workdir), "--step", "32")
    assert third.config["sampler"]["lim"]["scores"].endswith("scores-2.jsonl")
    kept = arena.Record(folder / "arena.jsonl").run("ten", "oracle", 0)
    assert [step for step, *_ in kept["curve"]][-1] >= 330


def test_a_subset_is_part_of_what_a_run_was(command, started):
    folder, argv = command
    argv = [*argv, "--arms=uniform,LIM", "--seeds=1", "--tokens=50", "--regimes=ten"]
    assert LAUNCH["main"]([*argv, "--arms=uniform"]) == 0
    record = arena.Record(folder / "arena.jsonl")
    common = record.rows[0]["common"]
    for name in subsets.NAMES:
        chosen = {"regime": "ten", "common": common, "set": name, "of": 10}
        chosen |= {"problems": 4, "kinds": {}, "places": [1, 3, 4, 7]}
        record.add(chosen)
    assert LAUNCH["main"](argv) == 0
    trained = load_problems(started[1].config["data"]["train"], data_dir=folder)
    assert trained.ids == ("ten/1", "ten/3", "ten/4", "ten/7")
    kept = arena.Record(folder / "arena.jsonl")
    rows = [x | {"places": [1, 3, 4, 8]} if "set" in x else x for x in kept.rows]
    kept.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as error:
        LAUNCH["main"](argv)
    assert str(error.value) == (
        f"{kept.path} holds ten, LIM, seed 0 of other settings; give the command that "
        "it had, or another --record"
    )


def test_what_is_on_record_of_another_command_is_refused(command, started):
    folder, argv = command
    argv = [*argv, "--arms=uniform", "--seeds=1", "--regimes=ten"]
    assert LAUNCH["main"]([*argv, "--tokens=50"]) == 0
    record = folder / "arena.jsonl"
    for other in ("--tokens=60", "--probe_epochs=4", "--config.optimizer.b2=0.9"):
        with pytest.raises(InputError) as error:
            LAUNCH["main"]([*argv, "--tokens=50", "--arms=CDAS", other])
        assert str(error.value) == (
            f"{record} holds ten, uniform, of other settings; give the command that it "
            "had, or another --record"
        )
    # Where things lie, and what is kept of a run, changes nothing.
    for same in ("--config.data.cache_dir=/tmp/x", "--config.checkpoint.keep=9"):
        other = [*argv, "--tokens=50", same, f"--out={folder / same[-1]}"]
        assert LAUNCH["main"](other) == 0
    assert len(started) == 1
    # Another regime may be of another command: the page leaves it out.
    argv = [*argv, "--tokens=60", "--regimes=six", f"--out={folder / 'six'}"]
    assert LAUNCH["main"](argv) == 0
    assert "## ten" not in (folder / "six/arena.md").read_text()


def test_a_subset_of_fewer_problems_than_a_step_draws(command, started, capsys):
    folder, argv = command
    argv = [*argv, "--seeds=1", "--tokens=50", "--regimes=ten"]
    assert LAUNCH["main"]([*argv, "--arms=uniform"]) == 0
    record = arena.Record(folder / "arena.jsonl")
    for name in subsets.NAMES:
        chosen = {"regime": "ten", "common": record.rows[0]["common"], "set": name}
        chosen |= {"of": 10, "problems": 1, "kinds": {}, "places": [1]}
        record.add(chosen)
    assert LAUNCH["main"]([*argv, "--arms=LIM"]) == 1
    said = "ten, LIM, seed 0: failed, LIM keeps 1 of 10 problems, and a step draws 4"
    assert said in capsys.readouterr().out
    assert len(started) == 1


def test_what_fails_is_said_and_the_rest_runs(command, started, monkeypatch, capsys):
    folder, argv = command
    run_all = jobs.run_all

    def fail(some, cache, *, seconds):
        return True if "CDAS" in some[0].name else run_all(some, cache, seconds=seconds)

    monkeypatch.setattr(jobs, "run_all", fail)
    argv = [*argv, "--arms=CDAS,uniform", "--seeds=1", "--tokens=50", "--regimes=ten"]
    assert LAUNCH["main"](argv) == 1
    said = capsys.readouterr().out
    assert "ten, CDAS, seed 0: failed, it did not finish" in said
    assert json.loads(said.splitlines()[-1]) == {
        "left": 1,
        "failed": 1,
        "out": str(folder / "out"),
    }


def test_no_run_begins_after_the_minutes(command, started, monkeypatch):
    _, argv = command
    monkeypatch.setattr(LAUNCH["time"], "monotonic", iter([0, 0, 61, 61]).__next__)
    argv = [*argv, "--arms=uniform", "--seeds=5", "--tokens=50", "--minutes=1"]
    assert LAUNCH["main"](argv) == 0
    assert len(started) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--arms=uniform,LIN"],
            "--arms='LIN' is unknown; did you mean 'LIM'? ("
            + ", ".join(sorted(LAUNCH["ARMS"])),
        ),
        (
            ["--arms=LIM,LIM"],
            "--arms=LIM,LIM names one twice; name each once",
        ),
        (
            ["--regimes=ten,five"],
            "regime='five' is unknown; did you mean 'ten'? (six, ten)",
        ),
        (["--tokens=0"], "--tokens=0 must be at least 1"),
        (
            ["--config.seed=999998", "--seeds=5"],
            "--config.seed=999998 with --seeds=5 has an arm of seed 1000000, which is "
            "the probe's; give a smaller --config.seed",
        ),
        (["--probe_epochs=1"], "--probe_epochs=1 must be from 2 to 1000; LIMR has 21"),
        (
            [f"--probe_epochs={10**12}", "--dry_run"],
            "--probe_epochs=1000000000000 must be from 2 to 1000; LIMR has 21",
        ),
        (
            ["--fork_at=3"],
            "--fork_at=3 must be 0, for none, or a multiple of evaluation.every=4",
        ),
        (
            ["--fork_at=4", "--arms=CDAS,uniform"],
            "--arms=CDAS,uniform with --fork_at=4: uniform comes first, since the "
            "others fork from it, and the oracle cannot",
        ),
        (
            ["--config.sampler.name=lim"],
            "--config.sampler.name is what regimes and arms differ in; leave it out",
        ),
        (
            ["--config.data.train=x.jsonl"],
            "--config.data.train is what regimes and arms differ in; leave it out",
        ),
        (["--record=gs://b/r"], "--record=gs://b/r is not on this machine; give a "),
        (["--record=no/r"], "--record no/r: no such folder; make it first"),
        (["--minutes=-1"], "--minutes=-1.0 must be 0 or more"),
        (["--seeds=0"], "--seeds=0 must be at least 1"),
        (
            ["--config.evaluation.every=5"],
            "evaluation.every=5 must divide 16, the steps between two looks of the "
            "oracle; give 4",
        ),
        (
            ["--config.optimizer.decay_steps=9"],
            "optimizer.decay_steps=9: arms end after different numbers of steps, and "
            "the rate must not depend on it; give 0",
        ),
    ],
)
def test_wrong_input_is_one_line_and_nothing_starts(flags, line, command, started):
    folder, argv = command
    with pytest.raises(InputError) as error:
        LAUNCH["main"]([*argv, *flags])
    assert line in str(error.value)
    assert not started and not (folder / "out").exists()


@pytest.mark.parametrize("name", ["arena.md", "run.json", "ten/other.jsonl"])
def test_a_record_among_the_runs_is_one_line(command, started, name):
    """The page would take its place at the end, say, and nothing would be on record."""
    folder, argv = command
    out, record = folder / "out", folder / "out" / name
    for there in (False, True):
        if there:
            record.parent.mkdir(parents=True)
        with pytest.raises(InputError) as error:
            LAUNCH["main"]([*argv, f"--record={record}", "--dry_run"])
        assert str(error.value) == (
            f"--record={record} lies in --out={out}, where the runs' own files and "
            "arena.md are written; give a file elsewhere"
        )
    assert not started


def test_an_out_that_is_a_file_is_known_before_a_dry_run_ends(command):
    folder, argv = command
    out = folder / "ten.jsonl"
    with pytest.raises(InputError) as error:
        LAUNCH["main"]([*argv, f"--out={out}", "--dry_run"])
    assert str(error.value) == (
        f"{out}/run.json cannot be written: {out} is no folder; give another --out"
    )


def test_a_regime_in_the_configs_place_is_one_line(command):
    _, argv = command
    with pytest.raises(InputError) as error:
        LAUNCH["main"]([f"{argv[0]}:ten", *argv[1:]])
    file = argv[0].removeprefix("--config=")
    assert str(error.value) == (
        f"--config={file}:ten: regimes are arguments of the file; give --config={file} "
        "and --regimes"
    )


@pytest.mark.soak
def test_all_arms_for_real(command):
    """The embedded model on 64 sums: every arm, the probe and the oracle's samples."""
    folder, argv = command
    write_problems(folder / "ten.jsonl", 64)
    argv = [
        x for x in argv if not x.startswith(("--config.model.", "--config.prompts"))
    ]
    argv += ["--regimes=ten", "--seeds=1", "--tokens=1800", "--probe_epochs=2"]
    argv += [f"--config.model.init={ROOT / 'limr_jax/assets/arithmetic'}"]
    argv += ["--config.rollout.max_response_length=16"]
    argv += ["--config.prompts_per_step=2", "--config.filter.max_rounds=2"]
    # These two have a number of problems of their own.
    arms = LAUNCH["ARMS"].keys() - {"uniform-16", "dynamic-16"}
    argv += [f"--arms={','.join(arms)}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "launch/arena.py")
    run = subprocess.run(
        [sys.executable, script, *argv],
        env=environment,
        capture_output=True,
        text=True,
    )
    record = arena.Record(folder / "arena.jsonl")
    assert {row["arm"] for row in record.runs()} == set(arms), run.stdout
    assert run.returncode == 0 and run.stdout.splitlines()[-1].startswith('{"left": 0')
    sets = {row["set"]: row for row in record.rows if "set" in row}
    assert sets["hardest"]["problems"] == 6
    assert sets["RAND"]["problems"] == sets["std"]["problems"] >= 2
    # Every arm began from the same policy, and has had its tokens: of the oracle, two
    # parts.
    assert len({row["curve"][0][1] for row in record.runs()}) == 1
    assert all(row["curve"][-1][0] >= 1800 for row in record.runs())
