"""One row of the table for every field; no value passes the loader but by its row."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ROOT

from limr_jax.check import check
from limr_jax.compilation import slices
from limr_jax.config import limits, load
from limr_jax.config.config_file import KINDS, leaves
from limr_jax.errors import InputError
from limr_jax.learner import advantages, jepo, losses
from limr_jax.learner import batch as batch_lib
from limr_jax.models import from_config, hf_config, presets
from limr_jax.rollout import slots
from limr_jax.samplers import allocation, group_filter
from limr_jax.samplers import from_config as samplers_from_config

DEFAULTS = {
    kind: dict(leaves(load.load([f"--config={ROOT}/configs/{kind}.py"])[0].to_dict()))
    for kind in KINDS
}
NUMBERS = (limits.Whole, limits.Real)
# (kind, field): of launch/sft.py's only what launch/tpu.py has not.
FIELDS = [("base", field) for field in DEFAULTS["base"]] + [
    ("sft_base", field) for field in DEFAULTS["sft_base"].keys() - DEFAULTS["base"]
]

OWN = (
    advantages.own_limits()
    | samplers_from_config.own_limits()
    | allocation.own_limits()
)
ROWS = limits.LIMITS | OWN


def test_every_field_has_a_row_and_every_row_a_field():
    fields = DEFAULTS["base"] | DEFAULTS["sft_base"]
    assert set(fields) == set(ROWS)
    for name, default in fields.items():
        assert type(default) is ROWS[name].kind, name
        assert limits.row(name, default).kind is ROWS[name].kind
        limits.check_value(ROWS[name], default, name)


def test_what_the_table_names_is_what_there_is():
    """Names are written out, since nothing may be loaded before they are checked."""
    for field, names in {
        "loss_normaliser": set(batch_lib.NORMALISERS),
        "loss": set(losses.LOSSES),
        "mismatch.correction": set(losses.CORRECTIONS),
        "kl.estimator": set(losses.KL_ESTIMATORS),
        "jepo.estimator": set(jepo.ESTIMATORS),
        "filter.groups": set(group_filter.GROUP_FILTERS),
        "allocation.name": set(allocation.ALLOCATIONS),
        "sampler.cdas.weights": set(samplers_from_config._CDAS_COUNTS),
        "model.architecture": set(hf_config._DEFAULTS),
        "model.dtype": {"auto", *from_config._DTYPES},
        "model.attention": set(from_config._KERNEL),
        "model.base_dtype": set(from_config._BASE_DTYPES),
        "model.preset": set(presets.PRESETS),
        "slice.type": set(slices.SLICES),
    }.items():
        assert set(ROWS[field].names) == names, field
    assert limits.LIMITS["rollout.compactions"].largest == slots.LOOPS - 1


def test_limits_are_numbers_that_the_devices_hold():
    """fp32 ends at 3.4e38, and its smallest normal number is 1.2e-38."""
    for name, row in ROWS.items():
        if isinstance(row, NUMBERS):
            assert row.least < row.largest, name
        if isinstance(row, limits.Real):
            assert 1e-37 < row.largest < 3.4e38, name
            assert row.least <= 0 or row.least > 1e-37, name


WORDS = ("inf", "-inf", "nan", "-1", "0", "1e300", str(2**40), "", "None", "[1]")


# Every n-th of all pairs of a field and a word: each has several of the other.
SOME = [3, pytest.param(1, marks=pytest.mark.soak)]


def pairs(words, every: int):
    """(kind, field, word) of every n-th pair."""
    whole = [(*field, word) for field in FIELDS for word in words]
    return whole[::every]


@pytest.mark.slow
@pytest.mark.parametrize("every", SOME)
def test_whatever_a_command_line_gives_is_refused_in_a_line_or_allowed(every):
    for kind, field, word in pairs(WORDS, every):
        argument, default = f"--config={ROOT}/configs/{kind}.py", DEFAULTS[kind][field]
        flag = f"--config.{field}={word}"
        try:
            loaded, _ = load.load([argument, flag], kind=kind)
        except InputError as error:
            line = str(error)
            assert line.startswith(f"--config.{field}=") and "\n" not in line, line
        else:
            value = dict(leaves(loaded.to_dict()))[field]
            assert type(value) is type(default), flag
            limits.check_value(limits.row(field, default), value, field)
            assert type(default) is not float or math.isfinite(value)


VALUES = (math.inf, math.nan, -1, 0, 0.5, 2**40, "", None, [1], True)
FILE = """
import importlib
from ml_collections import ConfigDict
inf, nan = float("inf"), float("nan")

def get_config(argument):
    kind, path, value = argument.split("=")
    section = fields = importlib.import_module("configs." + kind).get_config().to_dict()
    *above, name = path.split(".")
    for part in above:
        section = section[part]
    section[name] = eval(value)
    return ConfigDict(fields)
"""


@pytest.mark.slow
@pytest.mark.parametrize("every", SOME)
def test_whatever_a_file_gives_is_refused_in_a_line_or_allowed(tmp_path, every):
    """A dict, so that ml_collections does not look at types."""
    file = tmp_path / "any.py"
    file.write_text(FILE)
    for kind, field, value in pairs(VALUES, every):
        default = DEFAULTS[kind][field]
        argument = f"--config={file}:{kind}={field}={value!r}"
        try:
            loaded, _ = load.load([argument], kind=kind)
        except InputError as error:
            line = str(error)
            assert line.startswith(f"{argument}: {field}"), line
            assert "\n" not in line
        else:
            assert value is not None and value != [1], argument
            made = dict(leaves(loaded.to_dict()))[field]
            assert made == value and type(made) is type(default), argument
            limits.check_value(limits.row(field, default), made, field)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", -1, "seed=-1 must be from 0 to 4294967295"),
        ("seed", 2**32, "seed=4294967296 must be from 0 to 4294967295"),
        ("num_steps", 0, "num_steps=0 must be from 1 to 2147483647"),
        ("checkpoint.every", 0, "checkpoint.every=0 must be from 1 to 2147483647"),
        ("evaluation.samples", -1, "evaluation.samples=-1 must be from 0 to 65536"),
        (
            "data.too_long",
            "cut",
            "data.too_long='cut' is unknown; did you mean 'leave_out'? (leave_out, "
            "refuse)",
        ),
        (
            "slice.type",
            "v4-33",
            "slice.type='v4-33' is unknown; did you mean 'v4-32'? (v4-16, v4-32, "
            "v4-64, v4-8, v5litepod-1, v5litepod-16, v5litepod-4, v5litepod-8, "
            "v5p-16, v5p-8, v6e-1, v6e-16, v6e-4, v6e-8)",
        ),
        ("sampler.lim.warmup_epochs", 0, "must be from 1 to 2147483647"),
        ("sampler.lim.floor", 1.5, "must be from 0 to 1"),
        ("sampler.lim.temperature", 0.0, "must be from 1e-06 to 1e+06"),
        ("sampler.lim.threshold", math.inf, "must be from -1e+06 to 1"),
        ("filter.max_rounds", 0, "must be from 1 to 1048576"),
        ("filter.max_age", 2, "must be from 0 to 1"),
        ("sampler.mopps.pool", 0, "must be from 1 to 1048576"),
        ("sampler.mopps.prior", 0.0, "must be from 0.001 to 1e+06"),
        ("sampler.greso.floor", -1.0, "must be from 0 to 1"),
        ("sampler.curriculum.minimum", math.inf, "must be from -1e+06 to 1e+06"),
        ("rollout.temperature", 0.0, "must be from 0.001 to 1000"),
        ("rollout.temperature", math.inf, "must be from 0.001 to 1000"),
        ("rollout.top_p", 0.0, "must be from 1e-06 to 1"),
        ("rollout.top_k", 2**40, "must be from 0 to 2147483647"),
        ("rollout.compactions", 7, "must be from 0 to 6"),
        ("rollout.max_response_length", 0, "must be from 1 to 1048576"),
        ("filter.tau", math.inf, "must be from -1 to 1000"),
        ("kl.coefficient", -0.1, "must be from 0 to 1e+06"),
        ("kl.gain", 0.0, "must be from 1e-06 to 4.99"),
        ("critic.lam", 1.5, "must be from 0 to 1"),
        ("critic.value_clip", 0.0, "must be from 1e-06 to 1e+06"),
        ("optimizer.learning_rate", math.inf, "must be from 0 to 1e+38"),
        ("optimizer.b1", 1.0, "must be from 0 to 0.999999"),
        ("optimizer.epsilon", 0.0, "must be from 1e-30 to 1"),
        ("grader.wall_seconds", 0.0, "must be from 0.001 to 1e+06"),
        ("grader.memory_mib", 0, "must be from 1 to 16777216"),
        ("model.width", -16, "must be from 0 to 1048576"),
    ],
)
def test_limits_that_people_have_met(field, value, said):
    said = said if said.startswith(field) else f"{field}={value} {said}"
    with pytest.raises(InputError) as caught:
        limits.check_value(ROWS[field], value, field)
    assert str(caught.value) == said


def base_with(**fields):
    """base.py with these fields; `a__b` is the field a.b."""
    made, _ = load.load([f"--config={ROOT}/configs/base.py"])
    with made.unlocked():
        made.data.train = made.tokenizer = "there"
        for name, value in fields.items():
            *above, leaf = name.split("__")
            section = made
            for part in above:
                section = section[part]
            section[leaf] = value
    return made


def wrong(**fields) -> str:
    """What `check` says of `base_with` these fields."""
    with pytest.raises(InputError) as caught:
        check(base_with(**fields))
    return str(caught.value)


def test_a_config_that_was_made_by_a_program_is_held_to_the_table():
    assert wrong(clip__high=math.nan) == "clip.high=nan must be from 0 to 1e+06"


def test_what_algorithms_and_samplers_have_of_their_own_is_held_to_their_rows():
    assert wrong(algorithm="grp") == (
        "algorithm='grp' is unknown; did you mean 'grpo'? "
        f"({', '.join(sorted(advantages.ALGORITHMS))})"
    )
    assert wrong(sampler__name="unifrm") == (
        "sampler.name='unifrm' is unknown; did you mean 'uniform'? "
        f"({', '.join(sorted(samplers_from_config.SAMPLERS))})"
    )
    assert wrong(critic__gamma=-1.0) == "critic.gamma=-1.0 must be from 0 to 1"
    assert wrong(sampler__mopps__pool=0) == (
        "sampler.mopps.pool=0 must be from 1 to 1048576"
    )
    numbers = [field for field, row in OWN.items() if isinstance(row, limits.Real)]
    assert len(numbers) > 10
    for field in numbers:
        assert wrong(**{field.replace(".", "__"): math.nan}).startswith(f"{field}=nan ")


def test_a_filter_that_drops_everything():
    """Of eight rollouts the one right has an advantage of 7 / sqrt(8)."""
    assert wrong(filter__tau=2.5) == (
        "filter.tau=2.5 with algorithm=grpo and group_size=8 drops every rollout: no "
        "advantage is above 2.475; lower it, or -1 for none"
    )
    # JEPO's baseline clips them at 1.
    said = wrong(filter__tau=1.0, algorithm="rloo_normalised")
    assert "drops every rollout: no advantage is above 1;" in said
    # A penalty of the reward is added behind that bound.
    penalty = {"kl__coefficient": 0.1, "kl__placement": "reward"}
    check(base_with(filter__tau=2.5, **penalty))
    # With an allocation a problem may have more rollouts, and a larger advantage.
    said = wrong(filter__tau=5.5, allocation__name="knapsack")
    assert "groups of up to 32 (allocation.most) drops every rollout" in said


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"reward": "limr"}, "reward=limr"),
        ({"reward": "math, -0.2*a.b"}, "a weight of -0.2 in reward"),
        ({"reward": "math", "overlong__buffer": 64}, "overlong.buffer=64"),
    ],
)
def test_rewards_whose_mean_may_be_below_0(fields, named):
    assert wrong(algorithm="maxrl", **fields) == (
        "algorithm=maxrl divides by a group's mean reward, and with "
        f"{named} it may be below 0; take reward=math and overlong.buffer=0"
    )


@pytest.mark.parametrize("name", losses.CORRECTIONS)
def test_no_bound_of_a_correction_masks_what_rounding_makes_of_w(name):
    """At the narrowest bounds that the limits allow, w of 1 to 1e-5 is let through."""
    row = losses.CORRECTIONS[name]
    if row.weight is None:
        return
    narrow = {}
    for bound in row.bounds:
        limit = ROWS[f"mismatch.{bound}"]
        narrow[bound] = limit.largest if bound == "low" else limit.least
    sampler_BT = jnp.array([[-1e-3, -0.1, -1.0, -9.0]])
    for error in (-1e-5, 1e-5):
        weight_BT, _ = row.weight(sampler_BT, sampler_BT + error, **narrow)
        np.testing.assert_allclose(weight_BT, np.ones((1, 4)), atol=1e-4)


def test_corrections_that_need_the_learners_own_log_probabilities():
    assert wrong(mismatch__correction="tis", minibatches_per_step=4) == (
        "mismatch.correction=tis with 4 updates a step (minibatches_per_step x "
        "updates_per_minibatch): their ratios hold what the policy has moved as well; "
        "set mismatch.recompute=True"
    )
    assert wrong(mismatch__correction="ipo", loss="gspo") == (
        "mismatch.correction=ipo with loss=gspo, which has no ratio of a token as its "
        "factor; set mismatch.recompute=True"
    )


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("loss", "gspo", "take clip"),
        ("mismatch__recompute", True, "set it to False"),
        ("mismatch__correction", "tis", "take none"),
    ],
)
def test_what_jepo_has_no_place_for(field, value, remedy):
    said = wrong(**{"algorithm": "jepo", field: value})
    name = field.replace("__", ".")
    assert said.startswith(f"{name}={value} with algorithm=jepo, whose gradients of ")
    assert said.endswith(f"have no such thing; {remedy}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"kl__reset_every": 5},
            "kl.reset_every=5 with kl.coefficient=0: there is no reference to reset; "
            "give a coefficient, or kl.reset_every=0",
        ),
        (
            {"critic__pretrain_steps": 5},
            "critic.pretrain_steps=5 with algorithm=grpo, which has no critic; take "
            "ppo, or 0",
        ),
        (
            {
                "algorithm": "ppo",
                "critic__learning_rate": 1e-3,
                "critic__pretrain_steps": 100,
            },
            "critic.pretrain_steps=100 leaves none of num_steps=100 to the policy; "
            "lower it",
        ),
        (
            {
                "algorithm": "ppo",
                "critic__learning_rate": 1e-3,
                "critic__bootstrap_truncated": True,
                "rollout__max_response_length": 1,
            },
            "critic.bootstrap_truncated=True with rollout.max_response_length=1: a "
            "response that is cut has no token before its last; raise it",
        ),
    ],
)
def test_what_has_nothing_to_act_on(fields, said):
    assert wrong(**fields) == said


def test_a_dual_clip_that_takes_every_bad_token_s_gradient():
    assert wrong(clip__dual=0.5) == (
        "clip.dual=0.5 takes the gradient of each token of a negative advantage whose "
        "ratio is above it, so it must be above 1; 3 is usual, 0 is off"
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nan*math", "reward weight 'nan' of math must be from -1e+06 to 1e+06"),
        ("inf*math", "reward weight 'inf' of math must be from -1e+06 to 1e+06"),
        ("math, -1e7*a.b", "reward weight '-1e7' of a.b must be from -1e+06 to 1e+06"),
        ("0*math, 0*a.b", "reward='0*math, 0*a.b' weighs everything 0; give a weight"),
        ("x*math", "reward weight 'x' of math is no number"),
    ],
)
def test_weights_that_nothing_can_be_learned_by(spec, said):
    assert wrong(reward=spec) == said
