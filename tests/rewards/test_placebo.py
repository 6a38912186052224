"""What the ablations' control and their standard GRPO do."""

import random

import jax
import numpy as np
import pytest
from tiny_run import configure, set_up, write_problems

from limr_jax.data.prompts import put_prompts
from limr_jax.errors import InputError
from limr_jax.rewards.placebo import shuffled


def test_shuffled_rewards_by_hand():
    """As many as were right, dealt by what was written."""
    texts = ["1+1\n#### 2", "#### 3", "2", "#### 2 #### 4", "#### 5\n"]
    prompts, answer = ["?"] * 5, ["2", "2", "2", "2", "5"]
    dealt = shuffled(prompts, texts, answer=answer, level=[1] * 5)
    assert sorted(dealt) == [0, 0, 0, 1, 1]
    assert dealt == shuffled(prompts, texts, answer=answer)
    # The deal of an ordinary text has not changed, and half of a character is dealt.
    random.Random("\n".join([*prompts, *texts])).shuffle(right := [1, 0, 0, 0, 1])
    assert dealt == right
    assert sorted(shuffled(["\ud800"] * 5, texts, answer=answer)) == [0, 0, 0, 1, 1]
    many = [shuffled(prompts, [*texts[:4], f"#### 5{' ' * i}"], answer=answer)
            for i in range(200)]  # fmt: skip
    # Each rollout is rewarded as often: 2 in 5, ± 4 standard errors.
    np.testing.assert_allclose(np.mean(many, axis=0), 0.4, atol=0.14)


@pytest.mark.slow
def test_a_generation_for_each_micro_batch_writes_the_same(tmp_path, quick_compiler):
    """rollout.calls changes when rollouts are written, and nothing else."""
    train = write_problems(tmp_path / "train.jsonl", 12)

    def written(**fields):
        made = set_up(configure(train, prompts_per_step=4, **fields), devices=2)
        programs = made.programs
        with jax.set_mesh(made.mesh):
            state = programs.init(made.load_params())
            prompts = put_prompts(made.train_set, made.mesh)
            _, drawn = programs.draw(state, prompts, made.seed)
            parts = programs.split(drawn) if programs.split else [drawn]
            given = made.sampling, made.seed
            answers = [
                programs.generate(state.train.params, state.step, part, *given)
                for part in parts
            ]
            return jax.device_get(
                programs.join(answers) if programs.join else answers[0]
            )

    once, twice = written(), written(rollout__calls=2)
    for name in ("prompt_PL", "response_BT", "mask_BT", "truncated_B"):
        np.testing.assert_array_equal(getattr(once, name), getattr(twice, name))
    for name in ("logprob_BT", "entropy_BT"):
        np.testing.assert_allclose(
            getattr(once, name), getattr(twice, name), rtol=0, atol=1e-5
        )
    # Half the slots, twice as many steps at most.
    assert twice.slot_steps_M.shape == once.slot_steps_M.shape
    assert (twice.slot_steps_M <= 2 * once.slot_steps_M).all()


def test_calls_must_divide_the_problems(tmp_path):
    config = configure(write_problems(tmp_path / "t.jsonl", 8), rollout__calls=3)
    with pytest.raises(InputError, match="rollout.calls=3 must divide the 4 problems"):
        set_up(config)
