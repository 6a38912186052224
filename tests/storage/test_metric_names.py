"""METRICS.md has every number that a run writes, and no other. conftest.py holds each
run of the other tests against it as well: its names, and its numbers' ranges."""

import ast
import contextlib
import functools
import json
import re

import jax
import metric_table
import pytest
from metric_table import EVALS, RL, SFT, faults, row_of, tables, within
from tiny_run import (
    FIELDS,
    MODEL,
    ROOT,
    configure,
    set_up,
    with_parity,
    write_problems,
)

from limr_jax import setup, sft
from limr_jax.config import load
from limr_jax.models.attention.kernel_check import KERNELS
from limr_jax.rewards.types import INVALID
from limr_jax.samplers.allocation import ALLOCATIONS
from limr_jax.samplers.from_config import SAMPLERS
from limr_jax.storage import metrics
from limr_jax.train import train


def test_each_row_has_a_unit_a_range_and_a_meaning():
    for log, rows in tables().items():
        assert len(rows) > 8, log
        for name, (unit, limits, meaning) in rows.items():
            assert meaning, name
            if name != "sampled/<name>":
                assert unit and within(0.0, limits) in (True, False), name


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"reward": -3.5, "pass_rate": 1.0, "kl": None}, []),
        ({"reward/brevity": 0.1, "invalid/timeout": 0.0}, []),
        ({"rewards": 0.1}, ["rewards has no row in METRICS.md"]),
        ({"pass_rate": 1.1}, ["pass_rate=1.1 is not 0 … 1"]),
        ({"seconds": -1.0}, ["seconds=-1.0 is not ≥ 0"]),
        ({"jepo/bound": 0.5}, ["jepo/bound=0.5 is not ≤ 0"]),
        ({"kernel_splash": 0.5}, ["kernel_splash=0.5 is not 0, 1"]),
        ({"reward": "high"}, ["reward='high' is no number"]),
    ],
)
def test_what_is_amiss_in_a_line_is_named(row, said):
    assert faults(row, RL) == said


def test_runs_of_other_tests_are_looked_at(tmp_path):
    """A folder with the run.json of a run; without one the numbers are a test's own."""
    with metrics.Metrics(tmp_path) as log:
        log.step(1, {"nonsense": 1})
        (tmp_path / "run.json").write_text('{"config": {"group_size": 2}}')
        with pytest.raises(AssertionError, match="nonsense has no row"):
            log.step(2, {"nonsense": 1})
        (tmp_path / "run.json").write_text('{"config": {"log_every": 2}}')
        log.step(3, {"loss": 1.0})
        with pytest.raises(AssertionError, match="reward has no row"):
            log.step(4, {"reward": 1.0})


@functools.cache
def constants() -> frozenset[str]:
    """Each text of the package's code that could be a name, docstrings aside."""
    found = set()
    for path in (ROOT / "limr_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


def test_the_code_has_each_name_of_the_table():
    """Word by word, or as its two parts where the code puts it together."""
    texts = constants()
    made = {"critic/", "sampled/", "invalid/", "ungradable/", "reward/", "kernel_"}
    made |= {"seconds_", "accuracy_level_", "pass_at_", "bots/"}
    known = {*INVALID, *KERNELS}
    absent = []
    for log in (RL, SFT, EVALS):
        for name in tables()[log]:
            begin = next((x for x in made if name.startswith(x)), "")
            rest = name.removeprefix(begin)
            there = name in texts or (
                begin in texts
                and (rest in texts | known or "<" in rest or f"mopps/{rest}" in texts)
            )
            absent += [] if there else [name]
    assert not absent


def test_the_table_has_each_name_with_a_room_that_the_code_has():
    """As `lim/score_mean`: names without a slash are those of runs (conftest.py)."""
    rooms = {name.split("/")[0] for name in tables()[RL] if "/" in name}
    pattern = re.compile(rf"({'|'.join(rooms)})/[a-z_]+")
    names = {text for text in constants() if pattern.fullmatch(text)}
    # The moments of w, which `losses.with_sample_size` takes away again; and what
    # `Phases.finish` takes for the learned tokens.
    inner = {"mismatch/weight", "mismatch/weight_squared", "dynamic/used_tokens"}
    assert {name for name in names - inner if row_of(name, RL) is None} == set()
    assert inner <= names and "lim/score_mean" in names


# What each run must have that the others have not is in the table; all together have
# all of it, but for the kernels of a TPU.
ASSETS = ROOT / "limr_jax/assets/arithmetic"
RUNS = {
    "grpo, KL, filters, pass@k": {
        "kl__coefficient": 0.1,
        "filter__tau": 0.0,
        "filter__keep_kl": False,
        "evaluation__samples": 4,
        "evaluation__every": 1,
    },
    "ppo, minibatches": {
        "algorithm": "ppo",
        "critic__learning_rate": 0.01,
        "minibatches_per_step": 2,
        "mask_truncated": True,
    },
    "jepo": {"algorithm": "jepo", "reward": "none", "jepo__semi_verifiable": False},
    "corrected": {"mismatch__recompute": True, "mismatch__correction": "tis"},
    "graded by hosts": {"reward": "math, 0.5*limr_jax.rewards.placebo.shuffled"},
    "by a judge": {"reward": "math", "judge__init": ASSETS, "judge__max_length": 32},
    "limr's rewards, overlong": {"reward": "limr", "overlong__buffer": 2},
    "unbiased": {
        "sampler__name": "prioritized",
        "sampler__prioritized__floor": 0.1,
        "sampler__unbiased": True,
    },
    "some groups kept": {"filter__groups": "mixed", "filter__max_rounds": 2},
    **{f"allocated by {name}": {"allocation__name": name} for name in ALLOCATIONS},
    **{f"sampled by {name}": {"sampler__name": name} for name in SAMPLERS},
}
OWN = {
    "sampled by curriculum": {"sampler__curriculum__minimum": 0},
    "sampled by adarft": {"sampler__adarft__column": "level"},
    "allocated by ada": {"allocation__ada__per_round": 2, "group_size": 4},
}


@pytest.mark.soak
def test_runs_of_all_kinds_write_all_of_the_table(tmp_path, quick_compiler):
    seen = {RL: set(), SFT: set(), EVALS: set()}
    problems = write_problems(tmp_path / "train.jsonl", 16)
    held_out = write_problems(tmp_path / "eval.jsonl", 4, add=2)

    def look(workdir):
        for file in (metrics.METRICS, metrics.EVALS):
            log = metric_table.log_of(workdir, file)
            for row in metrics.read_metrics(workdir, file):
                assert not faults(row, log)
                seen[log] |= {row_of(name, log)[0] for name in row}

    for name, fields in RUNS.items():
        fields = {"num_steps": 2, "data__eval": held_out} | fields | OWN.get(name, {})
        config = configure(problems, **fields)
        run = set_up(config)
        if config.reward == "token" and config.algorithm != "jepo":
            run = with_parity(run)
        train(run, config, tmp_path / name.replace(" ", "_"))
        look(tmp_path / name.replace(" ", "_"))
    fine_tune(tmp_path / "sft", tmp_path / "texts.jsonl")
    look(tmp_path / "sft")
    absent = {log: tables()[log].keys() - names for log, names in seen.items()}
    # On a CPU no kernel fits; these graders and problems give no such fault.
    assert absent[RL] <= {f"kernel_{name}" for name in KERNELS}
    assert absent[SFT] <= {"kernel_splash"}
    assert absent[EVALS] <= {"ungradable/<reason>"}


def fine_tune(workdir, texts) -> None:
    """One update on four texts."""
    row = {"problem": "1+1=", "answer": "2", "solution": "1 + 1 = 2 #### 2"}
    texts.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(4)))
    fields = {"rows": 1, "columns": 64, "num_steps": 1, "data.train": texts}
    fields |= {"tokenizer": FIELDS["tokenizer"]}
    fields |= {f"model.{name}": size for name, size in MODEL.items()}
    argv = [f"--config.{name}={value}" for name, value in fields.items()]
    config, _ = load.load(["--config", str(ROOT / "configs/sft_base.py"), *argv])
    make = setup.make_mesh
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        one = jax.devices()[:1]
        patch.setattr(sft, "make_mesh", lambda **axes: make(**axes, devices=one))
        sft.train(config, workdir)
