"""The papers' recipes: each is whole, once it is given a model and its data."""

import pytest
from tiny_run import FIELDS, MODEL, ROOT, set_up, write_problems

from limr_jax import config as config_lib
from limr_jax import run

RECIPES = ("cdas", "dash", "grpo", "jepo", "limr_ppo", "rloo")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """As many as the largest batch."""
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 1024)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_set_up(problems, name):
    """On a small model; every number of the recipe's own stays, and fits the others."""
    given = {f"model.{field}": size for field, size in MODEL.items()}
    given |= {"data.train": problems, "tokenizer": FIELDS["tokenizer"]}
    argv = ["--config", str(ROOT / f"configs/{name}.py")]
    argv += [f"--config.{field}={value}" for field, value in given.items()]
    config, _ = config_lib.load(argv)
    made = set_up(config)
    told = run.describe(made, config)
    assert f"prompts_per_step: {config.prompts_per_step}" in told
    assert ("loaded" in told) == (config.kl.coefficient > 0)
    rows = config.prompts_per_step * config.group_size
    length = config.rollout.max_response_length
    state, prompts = made.programs.state, run.data.put(made.train_set, made.mesh)
    _, drawn = made.programs.draw.eval_shape(state, prompts, 0)
    asked = state.train.params, 0, drawn, made.sampling, 0
    written = made.programs.generate.eval_shape(*asked)
    assert written.response_BT.shape == (rows, length)
    assert drawn.ids_P.shape == (config.prompts_per_step,)
