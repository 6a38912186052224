"""`limr_jax.prompt_sampler` and `limr_jax.advantage`: by name, without a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import limr_jax
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.samplers.from_config import SAMPLERS

COLUMNS = {"level": [4.0] * 6 + [5.0] * 6, "difficulty": [*range(0, 60, 5)]}


QUICK = ("lim", "greso", "adarft")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.soak)
        for name in SAMPLERS
    ],
)
def test_every_sampler_can_be_had(name):
    """Its shapes: what they draw is tested in tests/samplers/."""
    sampler = limr_jax.prompt_sampler(
        name, problems=12, prompts=3, group=2, columns=COLUMNS
    )
    right_PG, good_PG = jnp.zeros((3, 2)), jnp.ones((3, 2), bool)

    def step(key):
        state, ids_P = sampler.sample(sampler.init(), key)
        report = sampler.report(state, ids_P)
        return sampler.update(state, ids_P, right_PG, good_PG), ids_P, report

    state, ids_P, report = jax.eval_shape(step, jax.random.key(0))
    assert ids_P.shape == (3,) and ids_P.dtype == jnp.int32 and "epoch" in report
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(sampler.init))


def test_fields_seeds_and_ids(tmp_path):
    scores = tmp_path / "scores.jsonl"
    scores.write_text(
        "".join(f'{{"id": "{x}", "lim_score": {x == "b"}.0}}\n' for x in "abc")
        .replace("True.0", "0.9")
        .replace("False.0", "0.1")
    )
    sampler = limr_jax.prompt_sampler(
        "lim", problems=["a", "b", "c"], prompts=1, scores=str(scores), floor=0
    )
    np.testing.assert_array_equal(sampler.init().weight_N, [0, 1, 0])
    assert int(sampler.sample(sampler.init(), jax.random.key(3))[1][0]) == 1
    orders = [
        limr_jax.prompt_sampler("uniform", problems=50, prompts=5, seed=seed)
        .init()
        .order_2N[0]
        .tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("lm", {}, "name='lm' is unknown; did you mean 'lim'?"),
        ("lim", {"treshold": 0.5}, "lim: field='treshold' is unknown; did you mean"),
        ("lim", {"threshold": 2}, "lim: threshold=2 must be from -1e+06 to 1"),
        ("lim", {"threshold": "x"}, "lim: threshold='x' must be a number, not str"),
        ("uniform", {"floor": 0.1}, "uniform has no fields of its own; leave floor"),
        ("uniform", {"prompts": 9}, "prompts=9 is more than the 8 problems"),
        ("uniform", {"prompts": 0}, "prompts=0 must be from 1 to"),
        ("uniform", {"problems": 0}, "problems=0 must be from 1 to"),
        ("uniform", {"problems": 8.0}, "problems is float; give how many there are"),
        ("uniform", {"problems": "abc"}, "problems is str; give how many there are"),
        ("uniform", {"problems": ["a", "a"]}, "2 ids, some of them twice"),
        ("uniform", {"seed": -1}, "seed=-1 must be from 0 to"),
        ("dps", {"group": 1}, "group=1: dps compares rollouts; give 2 or more"),
        ("adarft", {}, "has no such column, but none at all"),
        ("adarft", {"columns": {"difficulty": [1]}}, "1 values for 8 problems"),
        ("lim", {"scores": "/absent.jsonl"}, "/absent.jsonl"),
    ],
)
def test_mistakes(name, arguments, said):
    with pytest.raises(limr_jax.InputError) as raised:
        limr_jax.prompt_sampler(name, **({"problems": 8, "prompts": 2} | arguments))
    assert said in str(raised.value) and "\n" not in str(raised.value)


REWARDS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]


def test_advantages_are_those_of_a_run():
    asked = [x for x in ALGORITHMS if x not in ("ppo", "jepo")]
    for name in asked:
        estimator = ALGORITHMS[name].advantage.keywords["estimator"]
        there = estimator(jnp.array(REWARDS), jnp.ones((2, 4), bool))
        np.testing.assert_array_equal(limr_jax.advantage(name, REWARDS), there)
    valid = [[True, True, False, False]] * 2
    first = limr_jax.advantage("dr_grpo", REWARDS, valid)
    np.testing.assert_allclose(first, [[0.5, -0.5, 0, 0], [0, 0, 0, 0]])
    jitted = jax.jit(lambda x: limr_jax.advantage("rloo", x))(jnp.array(REWARDS))
    np.testing.assert_allclose(jitted.sum(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, fields, said",
    [
        (("grop", REWARDS), {}, "name='grop' is unknown; did you mean 'grpo'?"),
        (("ppo", REWARDS), {}, "'ppo' makes advantages of more than rewards"),
        (("jepo", REWARDS), {}, "'jepo' makes advantages of more than rewards"),
        (("grpo", [1.0, 0.0]), {}, "reward_PG has shape (2,)"),
        (("grpo", REWARDS, [True]), {}, "valid_PG (1,) of bool"),
        (("grpo", REWARDS, REWARDS), {}, "valid_PG (2, 4) of float32"),
        (("grpo", REWARDS), {"eps": 1}, "grpo has no argument 'eps'; it has epsilon"),
        (("rloo", REWARDS), {"eps": 1}, "rloo has no argument 'eps'; it has none"),
    ],
)
def test_mistakes_about_advantages(arguments, fields, said):
    with pytest.raises(limr_jax.InputError) as raised:
        limr_jax.advantage(*arguments, **fields)
    assert said in str(raised.value)
