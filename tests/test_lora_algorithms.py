"""JEPO and PPO over adapters beside an int8 base: runs, and a stop in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import (
    at_step,
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.models import lora
from limr_jax.storage import array_digest, checkpoint, metrics
from limr_jax.train import train

# mlp_width: no other test's arrays are of these shapes.
ADAPTED = {
    "model__mlp_width": 40,
    "model__lora__rank": 2,
    "model__base_dtype": "int8",
    "kl__coefficient": 0.1,
    "num_steps": 3,
    "checkpoint__every": 1,
    "checkpoint__keep": 9,
}
JEPO = {"algorithm": "jepo", "jepo__beta_sup": 1.0, "jepo__estimator": "multi_sample"}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


def run_of(fields, problems, workdir):
    """(workdir of an unbroken run, the run's parts, its config)."""
    config = configure(problems, **ADAPTED | fields)
    made = with_parity(set_up(config))
    train(made, config, workdir)
    return workdir, made, config


def state_after(step, whole):
    with checkpoint.Checkpointer(whole[0], read_only=True) as saver:
        return saver.restore(step, whole[1].programs.state)


def check_stop(whole, workdir, step):
    """Stopped at this step and gone on, a run is as if it had not been."""
    unbroken, made, config = whole
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, step), config, workdir)
    train(made, config, workdir)
    assert run_records(workdir) == run_records(unbroken)


@pytest.mark.slow
def test_jepo_and_a_stop(quick_compiler, problems, tmp_path):
    """Thoughts and answers are learned by adapters alone, on policy."""
    whole = run_of(JEPO, problems, tmp_path / "whole")
    rows = list(metrics.read_metrics(whole[0]))
    assert len({row["compile_count"] for row in rows}) == 1
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["drift_max"] < 1e-5
    # The reference is the base, which the policy is before its first update.
    assert rows[0]["kl"] < 1e-9
    assert all(row["kl"] > 1e-7 for row in rows[1:])
    learned = array_digest.named(whole[1].programs.state.train)
    assert not any("kernel" in name for name in learned)
    check_stop(whole, tmp_path / "broken", 3)


PPO = {
    "algorithm": "ppo",
    "critic__learning_rate": 0.01,
    "kl__estimator": "k1",
    "kl__placement": "reward",
}


@pytest.fixture(scope="module")
def ppo(quick_compiler, problems, tmp_path_factory):
    return run_of(PPO, problems, tmp_path_factory.mktemp("ppo"))


def test_ppo_s_critic_is_adapters_and_a_head(ppo):
    """In the state, and in a checkpoint; they are learned, apart from the policy's."""
    critic = ppo[1].programs.state.critic
    for name in array_digest.named(critic):
        end = name.rpartition("/")[2]
        assert end in ("lora_a", "lora_b", "count") or "value_head" in name, name
    (first, meta), (last, _) = state_after(1, ppo), state_after(3, ppo)
    policy = lora.split(last.train.params)[1]
    head = last.critic.params.pop("value_head")["kernel"]
    assert np.all(head != 0)
    # Of the first critic's, values of 0, all gradients but the head's are 0.
    assert np.any(first.critic.params.pop("value_head")["kernel"])
    for critic_was, critic_is, policy_is in zip(
        *map(jax.tree.leaves, (first.critic.params, last.critic.params, policy)),
        strict=True,
    ):
        assert np.any(critic_is != critic_was)
        assert np.any(critic_is != policy_is)
    base = ppo[1].load_base()
    assert meta["base"] == array_digest.of_tree(base)


def test_ppo_learns_by_the_values_of_its_critic(ppo):
    rows = list(metrics.read_metrics(ppo[0]))
    assert len({row["compile_count"] for row in rows}) == 1
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["critic/gradient_norm"] > 0
        assert row["drift_max"] < 1e-5
        # Of one update a step: the learner's values are those that were asked for.
        assert row["critic/clipped_share"] == 0
    assert rows[0]["critic/explained_variance"] == 0
    assert rows[0]["critic/value"] == 0 != rows[-1]["critic/value"]


def test_ppo_has_one_base_in_memory(ppo, tmp_path):
    """While hosts grade: policy, reference and critic read the same arrays."""
    _, made, config = ppo
    seen = []

    def look():
        seen.extend(
            x.dtype
            for x in jax.live_arrays()
            # The kernel of gate, up or down, of both layers.
            if sorted(x.shape) == [2, 16, 40] and x.dtype != jnp.float32
        )

    train(at_step(made, 2, look), config, tmp_path)
    assert seen == [jnp.int8] * 3
    assert run_records(tmp_path) == run_records(ppo[0])


@pytest.mark.slow
def test_ppo_on_eight_devices_is_on_one(ppo, tmp_path):
    config = ppo[2].copy_and_resolve_references()
    config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    train(with_parity(set_up(config, devices=8)), config, tmp_path)
    one, other = run_records(ppo[0]), run_records(tmp_path)
    assert [x["response"] for x in one["rollouts"]] == [
        x["response"] for x in other["rollouts"]
    ]
    for here, there in zip(one["metrics"], other["metrics"], strict=True):
        for name in ("loss", "kl", "critic/loss", "critic/value"):
            assert there[name] == pytest.approx(here[name], abs=1e-5), name
        for name in ("gradient_norm", "critic/gradient_norm"):
            assert there[name] == pytest.approx(here[name], rel=1e-4), name


def test_a_stop_of_ppo_changes_nothing(ppo, tmp_path):
    check_stop(ppo, tmp_path, 3)
