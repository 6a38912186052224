"""RLOO with a reward of 0 or 1 on MATH: what JEPO is compared with (arXiv:2503.19618).

    python launch/tpu.py --config configs/rloo.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: 64 problems × 4 rollouts a step, T 1, one update a step, KL 1e-3.
What it reports of MATH: JEPO without a verifier does as well as this with one; no
figure is in our notes, and the learning rate is not published. Its advantages are
JEPO's: above the mean of the others, over the group's std, clipped to ± 1. Without
the last two: --config.algorithm=rloo.

    got  –

The loss is log π of whole responses (a sum over tokens, a mean over rollouts), as in
RLOO's paper (arXiv:2402.14740): what algorithm=rloo has where no loss_normaliser is
named. Departures: learning rate 1e-6 and one epoch of 187 steps are this project's
choice.
"""

from configs import base


def get_config():
    """The advantage is normalised as JEPO's is."""
    c = base.get_config()
    c.num_steps = 187
    c.prompts_per_step = 64
    c.group_size = 4
    c.data.train = "math12k:train"
    c.benchmarks.names = "math500"
    c.algorithm = "rloo_normalised"
    c.reward = "math"
    c.rollout.max_prompt_length = 512
    c.rollout.max_response_length = 1024
    c.model.remat = True
    c.micro_batch_rows = 64
    c.kl.coefficient = 1e-3
    c.optimizer.learning_rate = 1e-6
    return c
