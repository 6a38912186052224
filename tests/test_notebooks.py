"""The notebooks run as they are committed: in this process, without a display.

No kernel: Jupyter's would be fifteen packages more for what `exec` does here.
"""

import json
import pathlib
import sys

import matplotlib
import numpy as np
import pytest
from tiny_run import configure, set_up, with_parity, write_problems

from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.workdir import write_result
from limr_jax.studies import jobs, tables
from limr_jax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def execute(monkeypatch):
    """execute(name, replace) → the notebook's names after its last cell."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def run(name, replace=lambda source: source, **names):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        monkeypatch.chdir(path.parent)
        names["__name__"] = name
        for cell in cells(path):
            if cell["cell_type"] == "code":
                source = replace("".join(cell["source"]))
                exec(compile(source, f"{name}:{cell['id']}", "exec"), names)
        return names

    yield run
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs_and_small(path):
    assert path.stat().st_size < 40_000
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_arena_reads_its_record(execute, capsys):
    names = execute("arena")
    said = capsys.readouterr().out
    lines = pathlib.Path("arena.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines if '"set"' not in line]
    assert len(names["runs"]) == len(runs) > 0
    assert all(f"{row['regime']}: " in said for row in runs)
    panels = names["plots"].differences(names["report"]).axes
    assert [axes.get_title() for axes in panels] == list(names["report"])


def test_lim_scores_finds_the_1389(execute, shared, capsys):
    names = execute("lim_scores")
    said = capsys.readouterr().out
    assert (
        " 8,523 problems\n" in said
        and " 1,389 in the released subset: the same" in said
    )
    assert len(names["kept"]) == 1389
    assert names["by_level"] == {
        "3": (2505, 2338, 258),
        "4": (2639, 2455, 431),
        "5": (3355, 3120, 696),
        "none": (24, 23, 4),
    }
    assert "     0.60  1,389  1,324\n" in said  # at least, and above
    assert "Intermediate Algebra    1,634   1,524     345   21.1%\n" in said
    # Both histograms hold every problem that has a score.
    figures = [names["plt"].figure(n) for n in names["plt"].get_fignums()]
    bars = [[bar.get_height() for bar in ax.patches] for ax in figures[1].axes]
    assert sum(bars[0]) == 7936
    by_level = [sum(bar.get_height() for bar in ax.patches) for ax in figures[2].axes]
    assert by_level == [2338, 2455, 3120]
    # The scores of the curves that illustrate it are LIM's own.
    shown = figures[0].axes[0].get_legend_handles_labels()[1]
    assert shown[0] == "the mean: 1.00" and "always solved: 0.00" in shown


def test_lim_scores_reads_the_scores_of_a_run(execute, tmp_path, capsys):
    rows = [{"id": str(i), "lim_score": i / 10, "epochs": 4} for i in range(10)]
    rows += [{"id": "x", "lim_score": None, "epochs": 0}]
    path = tmp_path / "scores.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    default = '"../../shared/data/math_lvl3to5.jsonl"'
    names = execute(
        "lim_scores", lambda source: source.replace(default, f"{str(path)!r}")
    )
    assert [row["id"] for row in names["kept"]] == ["6", "7", "8", "9"]
    assert names["by_level"] == {} == names["by_subject"]
    assert "released" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory, quick_compiler):
    """Two runs of four steps, of samplers that differ: name → workdir."""
    folder = tmp_path_factory.mktemp("runs")
    problems = write_problems(folder / "train.jsonl", 8)
    held_out = write_problems(folder / "eval.jsonl", 3, add=2)
    runs = {name: folder / name for name in ("uniform", "prioritized")}
    for name, workdir in runs.items():
        config = configure(
            problems, data__eval=held_out, num_steps=4, sampler__name=name
        )
        train(with_parity(set_up(config)), config, workdir)
    return runs


@pytest.mark.slow
def test_quickstart_reads_a_run(execute, tiny_runs, capsys):
    capsys.readouterr()
    default, here = '"../runs/tiny"', repr(str(tiny_runs["uniform"]))
    names = execute("quickstart", lambda source: source.replace(default, here))
    said = capsys.readouterr().out
    assert "4 steps of 4 problems × 2 rollouts" in said
    assert "sampler.name=uniform" in said and "8 problems over 2 epochs" in said
    assert "after step   0: " in said and "after step   4: " in said
    # Two samples of one problem stand under it.
    first = [line for line in said.splitlines() if " → " in line]
    assert len(first) == 2 and len({line.split("→")[0].split("'")[1] for line in first})
    flat_P, advantage_PG = names["flat_P"], names["advantage_PG"]
    np.testing.assert_array_equal(advantage_PG[flat_P], 0)
    np.testing.assert_allclose(advantage_PG.sum(axis=1), 0, atol=1e-5)
    assert len(names["figure"].axes[1].lines[0].get_xdata()) == 4


def with_runs(runs):
    """A `replace` that names these runs in the place of compare_runs' own."""
    default = '{"uniform": "../runs/uniform", "lim": "../runs/lim"}'
    named = repr({name: str(run) for name, run in runs.items()})

    def replace(source):
        assert ("RUNS = {" in source) == (default in source)
        return source.replace(default, named)

    return replace


@pytest.mark.slow
def test_compare_runs_reads_two(execute, tiny_runs, capsys):
    capsys.readouterr()
    names = execute("compare_runs", with_runs(tiny_runs))
    said = capsys.readouterr().out
    assert names["differing"] == {
        "prioritized": ['sampler.name: "uniform" → "prioritized"']
    }
    assert [len(axes.lines) for axes in names["figure"].axes] == [2, 2, 2]
    rows = list(rollout_dump.read_dump(tiny_runs["uniform"]))
    last = {row["id"]: row["step"] for row in rows}
    for problem, share in names["by_problem"]["uniform"].items():
        right = [
            row["correct"]
            for row in rows
            if row["id"] == problem and row["valid"] and row["step"] == last[problem]
        ]
        # Without a valid rollout at its last visit it is that of the one before.
        assert not right or share == np.mean(right)
    count = len(names["apart"]["prioritized"])
    assert 0 < count <= 8 and f" on {count} problems; more often right on " in said
    assert "training problems, at the last visit" in said
    assert said.count("  uniform, step ") == said.count("  prioritized, step ") == 3
    # A run against itself differs in nothing.
    same = dict.fromkeys(("a", "b", "c"), tiny_runs["uniform"])
    names = execute("compare_runs", with_runs(same))
    said = capsys.readouterr().out
    assert names["differing"] == {"b": [], "c": []}
    assert "b − a: +0.0 points [" in said and "c − a: +0.0 points [" in said


@pytest.mark.slow
def test_throughput_reads_a_run(execute, tiny_runs, tmp_path, capsys):
    capsys.readouterr()
    default, here = '"../runs/tiny"', repr(str(tiny_runs["uniform"]))
    absent = repr(str(tmp_path / "workload.json"))

    def replace(source):
        source = source.replace(default, here)
        return source.replace('"../../shared/bench/workload.json"', absent)

    names = execute("throughput", replace)
    said = capsys.readouterr().out
    rows = list(metrics.read_metrics(tiny_runs["uniform"]))
    counts = [0] + [row["compile_count"] for row in rows]
    kept = [row for row, before in zip(rows, counts) if row["compile_count"] == before]
    kept = kept or rows
    assert names["steps"].tolist() == [row["step"] for row in kept]
    assert {"generate", "update", "draw", "grade", "rest"} <= set(names["phases"])
    np.testing.assert_allclose(sum(names["shares"].values()), 1)
    seconds = sum(row["seconds_update"] for row in kept)
    whole = sum(row["seconds"] for row in kept)
    np.testing.assert_allclose(names["shares"]["update"], seconds / whole)
    waste = np.mean([row["rollout_waste"] for row in kept])
    assert f"slots that stood empty: {waste:.1%} of all decode steps" in said
    assert "no step is measured" in said and names["figures"] == {}


@pytest.mark.soak
def test_throughput_measures_steps(execute, tiny_runs, shared, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    default, here = '"../runs/tiny"', repr(str(tiny_runs["uniform"]))
    names = execute("throughput", lambda source: source.replace(default, here))
    assert set(names["figures"]) == {"fixed", "ragged"}
    for figures in names["figures"].values():
        assert figures["bench"] == "limr_jax" and figures["response_length"] == 16


def finished(workdir, accuracy) -> None:
    """What a run of two steps leaves behind that is compared."""
    row = {"seconds": 1.0, "compile_count": 9, "tokens": 8.0, "rollouts": 8}
    held_out = {"well_formed": 1.0, "response_length": 20 * accuracy}
    with metrics.Metrics(workdir) as log:
        for step in (1, 2):
            log.step(step, row | {"response_length": 5.0, "pass_rate": 0.5})
        log.evaluation(0, held_out | {"accuracy": 0.25})
        log.evaluation(2, held_out | {"accuracy": accuracy})
    write_result(workdir, {"seconds": 30.5})


def test_kl_ablation_reads_a_grid(execute, tmp_path, capsys):
    made = {}
    for arm, by_seed in {"kl=0": (0.5, 0.75), "kl=1": (0.25, 0.25)}.items():
        for seed, accuracy in enumerate(by_seed):
            workdir = tmp_path / arm / f"seed-{seed}"
            finished(workdir, accuracy)
            made[arm, seed] = jobs.Job(f"{arm}, {seed}", ("launch/tpu.py",), workdir)
    made["kl=2", 0] = jobs.Job("fails", ("launch/tpu.py",), tmp_path / "kl=2/seed-0")
    tables.write(tmp_path / "ablation", made, title="T", command="the command")
    default = '"../runs/ablation-kl.coefficient"'
    here = repr(str(tmp_path))
    names = execute("kl_ablation", lambda source: source.replace(default, here))
    said = capsys.readouterr().out
    assert said.startswith("the command\n") and "5 runs, 0 failed" in said
    assert names["table"] == {
        "kl=0": ["62.5 [-96.3, 221.3]", "12.5 [-19.3, 44.3]", "12.5 [-19.3, 44.3]"]
        + ["–", "–"],
        "kl=1": ["25.0 [25.0, 25.0]", "5.0 [5.0, 5.0]", "5.0 [5.0, 5.0]"]
        + ["-37.5 [-196.3, 121.3]", "0.205"],
        "kl=2": ["–"] * 5,
    }
    assert "these seeds show a true difference" in said
    points = names["axes"][0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[-37.5, 0]])
    assert [len(axes.lines) for axes in names["curves"].axes] == [2, 2, 2]


SESSIONS = {"kaggle_v5e8": "configs/v5e_8.py", "colab_v5e1": "configs/v5e_1.py"}
# The slices' configs with a model and problems that a test has time for.
TINY = {
    "model.preset": "",
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.tensor": 1,
    "num_steps": 2,
    "prompts_per_step": 4,
    "group_size": 2,
    "rollout.max_prompt_length": 16,
    "rollout.max_response_length": 6,
    "rollout.slots": 8,
    "micro_batch_rows": 4,
    "checkpoint.every": 1,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kaggle_v5e8", marks=pytest.mark.slow),
        # Its cells differ in places, names and hours.
        pytest.param("colab_v5e1", marks=pytest.mark.soak),
    ],
)
def test_a_session_from_nothing_to_an_adapter(name, execute, tmp_path, capsys):
    """The cells as they are, but for places, sizes, and a Python that is there."""
    problems = write_problems(tmp_path / "train.jsonl", 8)
    run = tmp_path / "run"
    overrides = [f"--config.{field}={x}" for field, x in TINY.items()]
    values = {
        "HOURS": 1.0,
        "MARGIN": 0,
        "CONFIG": SESSIONS[name],
        "OVERRIDES": [*overrides, f"--config.data.train={problems}"],
        "PYTHON": sys.executable,
        "START": None,
    }
    places = {
        "MODEL": ROOT / "limr_jax/assets/arithmetic",
        "WORKDIR": run,
        "PREVIOUS": tmp_path / "none",
    }

    def replace(source):
        lines = []
        for line in source.splitlines():
            variable = line.partition(" = ")[0]
            if values.get(variable) is not None:
                line = f"{variable} = {values[variable]!r}"
            if variable in places:
                line = f"{variable} = pathlib.Path({str(places[variable])!r})"
            lines.append(line)
        source = "\n".join(lines)
        module = 'module = ["-m", f"limr_jax.shipped.launch.{name}"]'
        script = f'module = ["{ROOT}/launch/" + name + ".py"]'
        return source.replace(module, script).replace(
            "sh(PYTHON", "sh(*IN_ROOT, PYTHON"
        )

    one = ["env", "-u", "JAX_NUM_CPU_DEVICES"]
    in_root = [*one, "-C", str(ROOT), f"PYTHONPATH={ROOT}"]
    names = execute(name, replace, IN_ROOT=in_root)
    said = capsys.readouterr().out
    assert "all steps are done" in said and names["code"] == 0
    made = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {*made}
    assert (tmp_path / "report.html").stat().st_size > 10_000
    # When the time is up, timeout sends SIGTERM and says 124.
    assert names["sh"]("sleep", "60", seconds=1) == 124
