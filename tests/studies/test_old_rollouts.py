"""A run's rollouts are written again to the last token, and scored."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import configure, one_device, set_up, with_parity, write_problems

from limr_jax import setup
from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.studies import old_rollouts
from limr_jax.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_compiler):
    """A run of three steps, all of it kept."""
    folder = tmp_path_factory.mktemp("old")
    problems = write_problems(folder / "train.jsonl", 6)
    fields = {"num_steps": 3, "checkpoint__every": 1, "checkpoint__keep": 3}
    config = configure(problems, **fields)
    # A random policy would learn nothing from the answers.
    train(with_parity(set_up(config)), config, folder / "run")
    return folder / "run"


def opened(workdir, out) -> old_rollouts.OldRollouts:
    with one_device(setup):
        old = old_rollouts.open_run(str(workdir), [3], out)
    return dataclasses.replace(old, run=with_parity(old.run))


@pytest.mark.slow
def test_rollouts_and_ratios(trained, tmp_path, quick_compiler):
    old = opened(trained, tmp_path / "out")
    with jax.set_mesh(old.run.mesh):
        rollouts = old_rollouts.write_again(old)
        assert [int(x["differs"]) for x in rollouts] == [0, 0, 0]
        case = old_rollouts.case(old, rollouts, 3, samples=4)
        assert case.log_ratio_XPG.shape == (3, 4, 2)
        assert case.truth_NK.shape == (6, 4)
        # The policy has moved since, with a learning rate of .01.
        assert np.median(np.abs(case.log_ratio_XPG)) > 1e-3
        # The rollouts of step 3 were written by the policy after step 2.
        own_XPG = old_rollouts.log_ratios(old, [rollouts[2]] * 2, 2)
        assert np.abs(own_XPG).max() < 1e-5
        spent = old_rollouts.seconds(old, rollouts, 3)
    assert spent["write"] > 0 and spent["score"] > 0
    # What is kept is not made again.
    again = opened(trained, tmp_path / "out")
    with jax.set_mesh(again.run.mesh), pytest.MonkeyPatch.context() as patch:
        patch.setattr(old_rollouts.OldRollouts, "params", None)
        kept = old_rollouts.write_again(again)
        same = old_rollouts.case(again, kept, 3, samples=4)
    np.testing.assert_array_equal(same.log_ratio_XPG, case.log_ratio_XPG)
    np.testing.assert_array_equal(same.truth_NK, case.truth_NK)


@pytest.mark.slow
def test_what_cannot_be_studied_is_one_line(trained, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no finished run"):
        opened(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"no checkpoint of step 4.*checkpoint.every"):
        old_rollouts.open_run(str(trained), [5], tmp_path / "out")
    config = trained_policy.read_config(trained)
    with config.unlocked():
        config.rollout.top_p = 0.9
    monkeypatch.setattr(trained_policy, "read_config", lambda _: config)
    with pytest.raises(InputError, match=r"rollout.top_p=0.9, and only runs with 1.0"):
        opened(trained, tmp_path / "out")
