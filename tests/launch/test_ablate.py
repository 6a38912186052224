"""launch/ablate.py: a grid of real runs, and what a user gets wrong."""

import csv
import json
import runpy
import shutil

import pytest
from tiny_run import ROOT, arguments, write_problems

from limr_jax.errors import InputError
from limr_jax.samplers.from_config import SAMPLERS
from limr_jax.storage import metrics
from limr_jax.storage.workdir import read_result

LAUNCH = runpy.run_path(str(ROOT / "launch/ablate.py"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """(folder, the command's arguments without arms): runs of two steps."""
    folder = tmp_path_factory.mktemp("ablate")
    fields = {
        "data.train": write_problems(folder / "train.jsonl", 10),
        "data.eval": write_problems(folder / "eval.jsonl", 3, add=2),
        "num_steps": 2,
        "model.layers": 1,
        "rollout.max_response_length": 4,
    }
    return folder, [*arguments(fields), f"--out={folder / 'out'}", "--seeds=1"]


@pytest.fixture(scope="module")
def ran(grid):
    """Two arms that run, and one that the program refuses when it meets the data."""
    folder, argv = grid
    arms = ["--arm=base", "--arm=few:prompts_per_step=12", "--arm=kl:kl=0.5"]
    with pytest.MonkeyPatch.context() as patch:
        # The compiler's time is most of this test's.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        code = LAUNCH["main"]([*argv, *arms])
    return folder / "out", argv, arms, code


@pytest.mark.slow
def test_the_grid_says_what_every_arm_came_to(ran):
    out, _, _, code = ran
    assert code == 1  # since one failed
    said = json.loads((out / "ablation.json").read_text())
    base, few, kl = (said["arms"][name]["accuracy"] for name in ("base", "few", "kl"))
    assert base["mean"] is not None and few["mean"] is None
    assert kl["difference"]["mean"] == kl["mean"] - base["mean"]
    with (out / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        ("base", "0"),
        ("few", "0"),
        ("kl", "0"),
    ]
    assert "prompts_per_step=12 is more than the 10 problems" in rows[1]["error"]
    for row in (rows[0], rows[2]):
        result = read_result(out / row["arm"] / "seed-0")
        assert float(row["accuracy"]) == result["eval_accuracy_after"]
        assert float(row["rollouts"]) == 2 * 4 * 2
        assert row["command"].endswith(f"--workdir {out / row['arm'] / 'seed-0'}")
        assert row["commits"]
    assert "--config.kl.coefficient=0.5" in rows[2]["command"]
    page = (out / "ablation.md").read_text()
    assert f"* few, seed 0: {rows[1]['error']}" in page
    assert rows[2]["command"] in page and "![learning curves](curves.png)" in page
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_arms_differ_by_their_setting_and_share_compiled_programs(ran):
    out, _, _, _ = ran
    kls = [
        ["kl" in row for row in metrics.read_metrics(out / arm / "seed-0")]
        for arm in ("base", "kl")
    ]
    assert kls == [[False] * 2, [True] * 2]
    # The update differs; what generates is one program.
    names = [path.name.split("-")[0] for path in (out / "compiled").glob("*-cache")]
    assert names.count("jit_update") == 2 and names.count("jit_generate") == 1


@pytest.mark.slow
def test_the_same_command_starts_nothing_that_is_done(ran, monkeypatch, capsys):
    out, argv, arms, _ = ran
    before = (out / "base/seed-0.jsonl").read_text()
    monkeypatch.setattr(
        "limr_jax.studies.jobs._run", lambda job, *_, **__: "failed, not now"
    )
    assert LAUNCH["main"]([*argv, *arms]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 runs are done already" in said
    assert "[1/1] few, seed 0: failed, not now" in said
    assert json.loads(said.strip().splitlines()[-1])["failed"] == 1
    assert (out / "base/seed-0.jsonl").read_text() == before
    # Without the arm that failed nothing is left to do.
    assert LAUNCH["main"]([*argv, arms[0], arms[2]]) == 0
    assert "| few |" not in (out / "ablation.md").read_text()


@pytest.mark.slow
def test_a_folder_of_another_grid_is_refused(ran):
    _, argv, arms, _ = ran
    with pytest.raises(InputError, match="differs in clip.low: 0.2 → 0.1"):
        LAUNCH["main"]([*argv, *arms, "--config.clip.low=0.1"])


@pytest.mark.slow
def test_every_combination_in_order(grid, capsys):
    folder, argv = grid
    vary = ["--vary", "kl=0,0.01", "--vary", "sampler=uniform,lim", "--dry_run"]
    argv = [*argv, f"--out={folder / 'new'}", "--seeds=2", "--config.seed=7"]
    assert LAUNCH["main"]([*argv, *vary]) == 0
    arms = [line for line in capsys.readouterr().out.splitlines() if "arm " in line]
    assert arms == [
        "arm kl.coefficient=0, sampler.name=uniform",
        "arm kl.coefficient=0, sampler.name=lim",
        "arm kl.coefficient=0.01, sampler.name=uniform",
        "arm kl.coefficient=0.01, sampler.name=lim",
    ]
    assert not (folder / "new").exists()
    # Each arm has a seed before any has the next.
    config, options = LAUNCH["config_lib"].load(
        [*argv, "--vary=kl=0,1"], flags=LAUNCH["_FLAGS"]
    )
    made = LAUNCH["plan"](
        config, options, LAUNCH["parse_arms"](options.vary, ()), folder
    )
    assert [(arm[-1], seed) for arm, seed in made] == [
        ("0", 7),
        ("1", 7),
        ("0", 8),
        ("1", 8),
    ]
    assert [job.config["seed"] for job in made.values()] == [7, 7, 8, 8]


BOTH = "give --vary FIELD=A,B,… or --arm NAME:FIELD=A, not both"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], BOTH),
        (["--vary=kl=0,1", "--arm=a"], BOTH),
        (
            ["--vary=kl"],
            "--vary kl: give a field and at least two values, as in --vary kl=0,0.01",
        ),
        (
            ["--vary=kl=0"],
            "--vary kl=0: give a field and at least two values, as in --vary kl=0,0.01",
        ),
        (
            ["--vary=kl=0,0"],
            "2 arms, of which 1 differ: kl.coefficient=0; give two or more, each once",
        ),
        (
            ["--vary=kl=0,0.0"],
            "arms kl.coefficient=0 and kl.coefficient=0.0 are one setting; drop one",
        ),
        (
            ["--vary=kl=0,x"],
            "arm kl.coefficient=x: --config.kl.coefficient=x: must be a number "
            "(default 0.0)",
        ),
        (
            ["--vary=kl.coeficient=0,1"],
            "arm kl.coeficient=0: --config.kl.coeficient=0: no field 'kl.coeficient'; "
            "the nearest is kl.coefficient",
        ),
        (
            ["--vary=kl=0,1", "--vary=kl=0,2"],
            "arm kl.coefficient=0, kl.coefficient=0: kl.coefficient is given twice; "
            "give it once",
        ),
        (
            ["--vary=seed=0,1"],
            "seed is not an arm: give --seeds N, and each arm has them",
        ),
        (
            ["--vary=kl=0,1", "--config.kl.coefficient=1"],
            "arm kl.coefficient=0 sets kl.coefficient, and so does "
            "--config.kl.coefficient; leave out one of the two",
        ),
        (["--vary=kl=0,1", "--seeds=0"], "--seeds=0 must be at least 1"),
        (
            ["--vary=kl=0,1", "--seeds=2", "--config.seed=4294967295"],
            "--seeds=2 from seed=4294967295 on go beyond 4294967295; give fewer, or a "
            "smaller --config.seed",
        ),
        (
            ["--vary=kl=0,1", "--run_seconds=-1"],
            "--run_seconds=-1.0 must be 0 or more",
        ),
        (
            ["--vary=kl=0,1", "--workdir=x"],
            "--workdir=x is of one run; give --out for the grid's",
        ),
        (
            ["--vary=kl=0,1", "--config.data.eval="],
            "arm kl.coefficient=0: data.eval is empty, and held-out accuracy is what "
            "arms are compared by; give --config.data.eval=…",
        ),
        (
            ["--arm=a", "--arm=b:data.eval="],
            "arm b: data.eval is empty, and held-out accuracy is what arms are "
            "compared by; give --config.data.eval=…",
        ),
        (
            ["--vary=kl=0,1", "--out=gs://bucket/grid"],
            "--out=gs://bucket/grid is not on this machine; give a local path",
        ),
        (
            ["--arm=a:evaluation.every=1", "--arm=b:kl=1", "--tokens=50"],
            "--tokens=50 compares on a line between evaluations, and arm b has none on "
            "the way; give --config.evaluation.every=…",
        ),
        (["--arm=a"], "1 arms, of which 1 differ: a; give two or more, each once"),
        (
            ["--arm=a", "--arm=b:kl"],
            "--arm b:kl: write NAME:FIELD=VALUE,FIELD=VALUE, or NAME alone",
        ),
        (
            ["--arm=a", "--arm=:kl=1"],
            "--arm :kl=1: write NAME:FIELD=VALUE,FIELD=VALUE, or NAME alone",
        ),
        (["--arm=a", "--arm=.."], "arm '..' cannot have that name; give it another"),
        (
            ["--arm=a b", "--arm=a,b"],
            "arms 'a b' and 'a,b' would share the folder a_b; give one another name",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(grid, flags, said):
    folder, argv = grid
    out = folder / "wrong"
    with pytest.raises(InputError) as caught:
        LAUNCH["main"]([*argv, f"--out={out}", *flags])
    assert str(caught.value) == said
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--vary=kl=0,-1"],
            "arm kl.coefficient=-1: --config.kl.coefficient=-1.0 must be from 0 to "
            "1e+06",
        ),
        (
            ["--vary=sampler=uniform,lym"],
            "arm sampler.name=lym: sampler.name='lym' is unknown; did you mean 'lim'? "
            f"({', '.join(sorted(SAMPLERS))})",
        ),
    ],
)
def test_a_value_that_no_run_takes_is_its_arms(grid, flags, said):
    """In the words that a run has for it (tests/test_bad_input.py)."""
    folder, argv = grid
    with pytest.raises(InputError) as caught:
        LAUNCH["main"]([*argv, f"--out={folder / 'wrong'}", *flags])
    assert str(caught.value) == said
    assert not (folder / "wrong").exists()


@pytest.mark.slow
def test_a_workdir_of_another_run_is_refused_before_any_runs(grid):
    folder, argv = grid
    out = folder / "taken"
    (out / "b/seed-0").mkdir(parents=True)
    (out / "b/seed-0/run.json").write_text('{"config": {"num_steps": 2}}')
    with pytest.raises(InputError, match="holds a run that differs"):
        LAUNCH["main"]([*argv, f"--out={out}", "--arm=a:kl=1", "--arm=b"])
    assert [path.name for path in out.iterdir()] == ["b"]
    shutil.rmtree(out)
