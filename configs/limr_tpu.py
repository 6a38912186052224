"""LIMR by PPO with online LIM, as the configs of TPU slices have it.

    python launch/tpu.py --config configs/v4_32.py          # this, on a v4-32

The released recipe (limr_ppo.py, and what departs from it there) on all 8,523 problems,
whose script scripts/train_math.8k.sh has the same settings: the first epoch scores
them, from then on LIM's weights draw, so no probe of 21 epochs comes first. The cosine
spans 10,000 episodes of 266 updates: the rate is constant here too. The checkpoint
and its tokenizer are to lie in ../models/Qwen2.5-Math-7B (v4_8 and v5e_16: -1.5B).
Every step is saved: at full length one takes half an hour. v4_32.py and its like say
the slice and what fits there.

Arguments, as in `--config configs/v4_32.py:kl=0,critic=no`:

    kl=X         coefficient of the KL; 0: no reference model in memory
    critic=no    GRPO in the place of PPO: no critic, no second optimiser; one update a
                 step at a constant rate of 1e-6; k3 in the loss; rollouts without
                 advantage are dropped (kl=0). The rest is LIMR's, the mean over tokens
                 and Adam's betas too
"""

from configs import limr_ppo
from limr_jax.config.load import switches


def remedies(checkpoint: str = "Qwen2.5-Math-7B") -> dict[str, str]:
    """REMEDIES of a config that starts from this checkpoint."""
    fetch = (
        f"fetch it: hf download Qwen/{checkpoint} --local-dir ../models/{checkpoint}"
    )
    return {"model.init": fetch, "tokenizer": fetch}


REMEDIES = remedies()


def get_config(argument: str = "", checkpoint: str = "Qwen2.5-Math-7B"):
    """1,024 prompts x 8, prompt 1,024, response 3,072, KL 0.01."""
    values = switches(argument, kl=0.01, critic=True)
    c = limr_ppo.get_config()
    c.data.train = "math_lvl3to5:train"
    c.tokenizer = c.model.init = f"../models/{checkpoint}"
    c.model.preset = checkpoint.lower()
    c.mesh.data = 1
    c.slice.problems = 8523
    c.slice.answer_length = 64
    c.optimizer.decay_steps = limr_ppo.released_updates(8523)
    c.sampler.name = "lim"
    c.rollout.compactions = 1
    c.checkpoint.every = 1
    c.kl.coefficient = values["kl"]
    if not values["critic"]:
        c.algorithm = "grpo"
        c.critic.learning_rate = 0.0
        c.minibatches_per_step = 1
        c.kl.estimator, c.kl.placement = "k3", "loss"
        c.filter.tau = 0.0
        c.optimizer.learning_rate = 1e-6
        c.optimizer.warmup_steps = c.optimizer.decay_steps = 0
    return c
