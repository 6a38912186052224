"""Every prompt sampler as its config names it: in the loop, and through a stop."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_table import RL, row_of
from tiny_policy import QUICK
from tiny_run import configure, run_records, set_up, with_parity, write_problems

from limr_jax.data.problems import load_problems
from limr_jax.errors import InputError
from limr_jax.jit import known
from limr_jax.prng import stream_key
from limr_jax.samplers import from_config, group_filter
from limr_jax.storage.workdir import read_result
from limr_jax.train import train

# Name → fields beside the name, and one number that it reports.
SAMPLERS = dict.fromkeys(from_config.SAMPLERS, ({}, "epoch")) | {
    "uniform": ({}, "epoch"),
    "lim": ({}, "lim/score_mean"),
    "cdas": ({}, "cdas/competence"),
    "prioritized": ({}, "prioritized/weight_mean"),
    "informative": ({}, "informative/drawn_chance"),
    "bots": ({}, "bots/drawn_pass_rate"),
    "dps": ({}, "dps/drawn_between"),
    "mopps": ({"pool": 2}, "mopps/drawn_pass_rate"),
    "greso": ({}, "greso/skipped_share"),
    "curriculum": ({"start": 2, "minimum": 1}, "curriculum/eligible_share"),
    "dynamic": ({}, "dynamic/rounds"),
    "adarft": ({"column": "level"}, "adarft/target"),
}
STEPS = 5
QUICKLY = partial(jax.jit, compiler_options=QUICK)
FUSED = partial(
    jax.jit,
    compiler_options=known(
        xla_backend_optimization_level=3, xla_cpu_use_fusion_emitters=True
    ),
)
# Runs that draw by what another sampler's run has already: posteriors, or an order.
BY_HAND = {
    ("prioritized", "none"),
    ("dynamic", "none"),
    ("informative", "none"),
    ("dps", "none"),
    ("informative", "mixed"),
}


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Ten problems, half of them of level 1."""
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


def configured(problems, name, **more):
    fields = {f"sampler__{name}__{field}": x for field, x in SAMPLERS[name][0].items()}
    fields |= {"num_steps": STEPS, "model__layers": 1, "sampler__name": name}
    return configure(problems, **fields | {"filter__max_rounds": 2} | more)


def sampler_of(config, problems):
    return from_config.make_sampler(
        config.sampler,
        load_problems(str(problems), data_dir=""),
        prompts=config.prompts_per_step,
        group=config.group_size,
        seed=config.seed,
        groups=from_config.group_filter(config),
        max_rounds=config.filter.max_rounds,
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
        state = sampler.update(state, ids_P, right_PG, valid_PG)
        return sampler.end_step(state) if sampler.keep else state, ids_P, report

    step = QUICKLY(step)
    state = through = other = QUICKLY(sampler.init)()
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


# Each with a filter of groups, whatever it draws by; `dynamic` has one already.
FILTERED = [name for name in SAMPLERS if name != "dynamic"]


@pytest.mark.parametrize("name", FILTERED)
def test_rounds_draw_different_problems(problems, name):
    """With two rounds of four of ten problems, or of five in the curriculum's."""
    prompts = 2 if name == "curriculum" else 4
    more = {"filter__groups": "mixed", "prompts_per_step": prompts}
    sampler = sampler_of(configured(problems, name, **more), problems)
    plain = sampler_of(configured(problems, name, prompts_per_step=prompts), problems)

    # The two programs agree to the last bit by the compiler's own defaults.
    @FUSED
    def draw_and_learn(state, key, i):
        state, ids_P = sampler.sample(state, key)
        right_PG = ((ids_P[:, None] + i) % 3 > jnp.arange(3)[None]).astype("float32")
        report = sampler.report(state, ids_P)
        state = sampler.update(state, ids_P, right_PG, right_PG >= 0)
        return state, ids_P, report

    @FUSED
    def alone(state, key, i):
        state, ids_P = plain.sample(state, key)
        right_PG = ((ids_P[:, None] + i) % 3 > jnp.arange(3)[None]).astype("float32")
        return plain.update(state, ids_P, right_PG, right_PG >= 0), ids_P

    state, single = QUICKLY(sampler.init)(), QUICKLY(plain.init)()
    ended = QUICKLY(sampler.end_step)
    twice, seen = 0, set()
    for i in range(12):
        key = stream_key(0, "sampler", i)
        rounds = 1 + i % 2
        drawn = []
        for number in range(rounds):
            state, ids_P, report = draw_and_learn(state, key, i)
            drawn += ids_P.tolist()
            assert report["dynamic/rounds"] == number + 1
            assert np.isfinite(report["epoch"]) and SAMPLERS[name][1] in report
        assert len(set(drawn)) == rounds * prompts, (i, drawn)
        twice, seen = twice + (rounds == 2), seen | set(drawn)
        state = ended(state)
        assert state.rounds == 0
    assert twice == 6 and len(seen) > prompts
    # A step of one round is a step without a filter, bit for bit; the order alone is
    # looked further ahead in, and another one may follow it.
    if name not in ("uniform", "lim", "cdas", "curriculum"):
        state = QUICKLY(sampler.init)()
        for i in range(6):
            key = stream_key(0, "sampler", i)
            state, ids_P, _ = draw_and_learn(state, key, i)
            single, alone_P = alone(single, key, i)
            np.testing.assert_array_equal(ids_P, alone_P)
            state = ended(state)
            jax.tree.map(np.testing.assert_array_equal, state.sampler, single)


@pytest.mark.parametrize("name", ["prioritized", "informative", "mopps", "adarft"])
def test_two_rounds_are_one_draw_of_twice_as_many(problems, name):
    """By weight, and by nearness: the second round goes on where the first ended."""
    # A pool of all ten, which are then the same candidates for both.
    pool = {"sampler__mopps__pool": 4}
    filtered = {"filter__groups": "mixed", "prompts_per_step": 3}
    config = configured(problems, name, **filtered, **pool)
    whole = configured(problems, name, prompts_per_step=6, **pool)
    sampler, twice = sampler_of(config, problems), sampler_of(whole, problems)
    state, key = QUICKLY(sampler.init)(), stream_key(0, "sampler", 7)
    sample, drawn = QUICKLY(sampler.sample), []
    for _ in range(2):
        state, ids_P = sample(state, key)
        drawn += ids_P.tolist()
    assert drawn == QUICKLY(twice.sample)(QUICKLY(twice.init)(), key)[1].tolist()


def test_what_is_not_kept_is_learned_from(problems):
    """Else a posterior of kept groups would find every problem half solved."""
    config = configured(problems, "informative", filter__groups="mixed")
    sampler = sampler_of(config, problems)
    right_PG = jnp.ones((4, 2))

    @QUICKLY
    def one_step():
        state, ids_P = sampler.sample(sampler.init(), jax.random.key(0))
        state = sampler.update(state, ids_P, right_PG, right_PG > 0)
        return sampler.end_step(state), ids_P

    state, ids_P = one_step()
    assert not group_filter.mixed(right_PG, right_PG > 0).any()
    np.testing.assert_array_equal(state.sampler.posterior.right_N[ids_P], [3] * 4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_page_says_what_each_number_is(problems, name):
    config = configured(problems, name, filter__groups="mixed", prompts_per_step=2)
    sampler = sampler_of(config, problems)

    def reported():
        return sampler.report(*sampler.sample(sampler.init(), jax.random.key(0)))

    for number in jax.eval_shape(reported):  # their names alone
        assert row_of(number, RL), number


@pytest.fixture(scope="module")
def plain(problems):
    """A run whose rollouts the others share, since no sampler changes that program."""
    return with_parity(set_up(configured(problems, "uniform")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        pytest.param(*pair, marks=pytest.mark.soak if pair in BY_HAND else [])
        for pair in [
            *((n, "none") for n in SAMPLERS if n not in ("uniform", "lim")),
            *((n, "mixed") for n in ("lim", "informative", "greso")),
        ]
    ],
)
def test_a_run_and_a_stop(problems, plain, tmp_path, name, groups):
    """The tests of the loop run `lim`; here the others, and some with a filter."""
    config = configured(problems, name, filter__groups=groups)
    made = set_up(config)
    programs = made.programs._replace(generate=plain.programs.generate)
    made = dataclasses.replace(made, programs=programs, grade=plain.grade)
    train(made, config, tmp_path / "whole")
    seen = run_records(tmp_path / "whole")
    assert len(seen["metrics"]) == STEPS
    numbers = [row[SAMPLERS[name][1]] for row in seen["metrics"]]
    # Before the first epoch's end LIM has no score, of which there would be a mean.
    assert name == "lim" or None not in numbers
    assert np.isfinite([x for x in numbers if x is not None]).all()
    assert numbers[-1] is not None
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
    assert run_records(tmp_path / "stopped") == seen


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
