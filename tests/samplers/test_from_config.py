"""Every prompt sampler as its config names it: in the loop, and through a stop."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import QUICK
from tiny_run import configure, set_up, told, with_parity, write_problems

from limr_jax.data.problems import load_problems
from limr_jax.errors import InputError
from limr_jax.prng import stream_key
from limr_jax.samplers import from_config
from limr_jax.storage.workdir import read_result
from limr_jax.train import train

# Name → fields beside the name, and one number that it reports.
SAMPLERS = dict.fromkeys(from_config.SAMPLERS, ({}, "epoch")) | {
    "uniform": ({}, "epoch"),
    "lim": ({}, "lim/score_mean"),
    "cdas": ({}, "cdas/competence"),
    "prioritized": ({}, "prioritized/weight_mean"),
    "informative": ({}, "informative/drawn_chance"),
    "mopps": ({"pool": 2}, "mopps/drawn_pass_rate"),
    "greso": ({}, "greso/skipped_share"),
    "curriculum": ({"start": 2, "minimum": 1}, "curriculum/eligible_share"),
    "dynamic": ({"max_rounds": 2}, "dynamic/rounds"),
    "adarft": ({"column": "level"}, "adarft/target"),
}
STEPS = 5


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Ten problems, half of them of level 1."""
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


def configured(problems, name):
    fields = {f"sampler__{name}__{field}": x for field, x in SAMPLERS[name][0].items()}
    fields |= {"num_steps": STEPS, "model__layers": 1, "sampler__name": name}
    return configure(problems, **fields)


def sampler_of(config, problems):
    return from_config.make_sampler(
        config.sampler,
        load_problems(str(problems), data_dir=""),
        prompts=config.prompts_per_step,
        group=config.group_size,
        seed=config.seed,
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_its_state(problems, name):
    """Twelve steps through the host and back are twelve steps, bit for bit.

    No problem comes twice in a step; what is reported is finite from the second epoch
    on, and says the same whether or not invalid rollouts look right.
    """
    config = configured(problems, name)
    sampler = sampler_of(config, problems)

    def step(state, step, junk):
        state, ids_P = sampler.sample(state, stream_key(config.seed, "sampler", step))
        right_PG = ((ids_P[:, None] + step) % 3 > jnp.arange(3)[None]).astype("float32")
        valid_PG = (ids_P[:, None] + jnp.arange(3)[None] + step) % 4 > 0
        report = sampler.report(state, ids_P)
        right_PG = jnp.where(valid_PG, right_PG, junk)
        return sampler.update(state, ids_P, right_PG, valid_PG), ids_P, report

    step = jax.jit(step, compiler_options=QUICK)
    state = through = other = jax.jit(sampler.init)()
    for i in range(12):
        state, ids_P, report = step(state, i, 0.0)
        leaves, treedef = jax.tree.flatten(jax.device_get(through))
        assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
        through, through_P, _ = step(treedef.unflatten(leaves), i, 0.0)
        other, other_P, _ = step(other, i, 1.0)
        np.testing.assert_array_equal(ids_P, through_P)
        np.testing.assert_array_equal(ids_P, other_P)
        assert ids_P.dtype == jnp.int32 and len(set(ids_P.tolist())) == 4
    jax.tree.map(np.testing.assert_array_equal, through, state)
    jax.tree.map(np.testing.assert_array_equal, other, state)
    assert dataclasses.is_dataclass(state) and state.__dataclass_params__.frozen
    assert SAMPLERS[name][1] in report
    assert all(np.isfinite(value) for value in report.values()), report
    assert report["epoch"] >= 4  # 12 steps of at least a third of an epoch


@pytest.fixture(scope="module")
def plain(problems):
    """A run whose rollouts the others share, since no sampler changes that program."""
    return with_parity(set_up(configured(problems, "uniform")))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in ("uniform", "lim")])
def test_a_run_and_a_stop(problems, plain, tmp_path, name):
    """The tests of the loop run `lim`; here the others."""
    config = configured(problems, name)
    made = set_up(config)
    programs = made.programs._replace(generate=plain.programs.generate)
    made = dataclasses.replace(made, programs=programs, grade=plain.grade)
    train(made, config, tmp_path / "whole")
    seen = told(tmp_path / "whole")
    assert len(seen["metrics"]) == STEPS
    for row in seen["metrics"]:
        assert np.isfinite(row[SAMPLERS[name][1]])
    assert len({row["loss"] for row in seen["metrics"]}) > 1
    calls = []

    def grade(written, drawn):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return made.grade(written, drawn)

    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(made, grade=grade), config, tmp_path / "stopped")
    assert read_result(tmp_path / "stopped") is None
    train(made, config, tmp_path / "stopped")
    assert told(tmp_path / "stopped") == seen


def test_columns_that_are_no_difficulties(problems, tmp_path):
    path = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in problems.read_text().splitlines()]

    def refused(**columns):
        path.write_text("".join(json.dumps(row | columns) + "\n" for row in rows))
        config = configure(path, sampler__name="adarft")
        with pytest.raises(InputError) as error:
            sampler_of(config, path)
        return str(error.value)

    assert "0 to 100" in refused(difficulty=101) and "101" in refused(difficulty=101)
    assert "0 to 100" in refused(difficulty=None)
    assert "a column of numbers" in refused(difficulty="hard")
