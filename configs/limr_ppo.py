"""LIMR as the paper trains it: PPO with a critic (arXiv:2502.11886).

    python launch/tpu.py --config configs/limr_ppo.py --config.data.train=kept.jsonl \\
        --config.model.init=DIR --config.tokenizer=DIR

DIR is Qwen2.5-Math-7B; kept.jsonl the problems that launch/lim.py kept of MATH levels 3
to 5 (1,389 of 8,523 at 0.6). The paper's set-up: 1,024 problems × 8 rollouts, T 1.2, 32
updates of 256, clip 0.2 of ratio and value, γ 1, λ 0.95, learning rates 5e-7 and 9e-6
(critic, a copy of the policy at first), 10 steps of warm-up, cosine to 10 %, k1 with
0.01 in each token's reward, prompts to 1,024 and responses to 3,072 tokens, reward +1,
−0.5 or −1. Its numbers: AIME24 / MATH500 / AMC23 16.7 / 52.4 / 52.5 before,
32.5 / 78.0 / 63.8 after with the 1,389, 32.5 / 76.6 / 61.9 with all 8,523, evaluated as
configs/limr_eval.py does. Got here: not run; it needs an accelerator of some 256 GB.

What the paper leaves open: how long the training on 1,389 lasts. Here it is as many
steps as the probe of 21 epochs has, 168.
"""

from configs import base

STEPS, MINIBATCHES = 168, 32


def get_config():
    """1,024 prompts x 8, walked in 32 updates of 256; per-token k1 in the reward."""
    c = base.get_config()
    c.num_steps = STEPS
    c.prompts_per_step = 1024
    c.group_size = 8
    c.rollout.temperature = 1.2
    c.rollout.max_prompt_length = 1024
    c.rollout.max_response_length = 3072
    c.reward = "limr"
    c.algorithm = "ppo"
    c.minibatches_per_step = MINIBATCHES
    c.micro_batch_rows = 32
    c.critic.learning_rate = 9e-6
    c.kl.coefficient = 0.01
    c.kl.estimator = "k1"
    c.kl.placement = "reward"
    c.optimizer.learning_rate = 5e-7
    c.optimizer.warmup_steps = 10
    c.optimizer.decay_steps = STEPS * MINIBATCHES
    c.model.remat = True
    return c
