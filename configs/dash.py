"""DASH on MATH (arXiv:2505.17218): filtered before the backward pass.

    python launch/tpu.py --config configs/dash.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: Qwen2.5 0.5B, 1.5B and 3B base, the 12,000 problems of MATH, 64
problems × 4 rollouts a step, one update a step, T 0.9, learning rate 3e-6, reward 0 or
1. Its numbers, accuracy on MATH500 / GSM8K in % and hours of training:

                        0.5B                 1.5B         3B
    standard GRPO       27.6 / 32.8, 38.9 h
    no filter           27.4 / 31.6,  6.9 h
    DASH                27.2 / 31.1,  6.6 h  54.0 / 58.8  64.6 / 64.6
    no KL               31.4 / 34.0,  5.7 h  56.8 / 62.1  66.4 / 60.0
    PPO-Multi, 3 passes 28.8 / 31.5          54.0 / 61.0
    PPO-Mini, 32        29.8 / 31.6          36.0 / 8.1
    got                 –

No filter: filter.tau=-1. No KL: kl.coefficient=0. PPO-Multi: updates_per_minibatch=3.
PPO-Mini: minibatches_per_step=32 and micro_batch_rows=8. Steps are not published: 187
are one epoch.

Departures: the loss is divided by all rows, where the paper's code divides by the kept
ones of each micro-batch (filter.normaliser). What a filtered rollout's KL would have
added is lost, as in the paper (filter.keep_kl). The paper differentiates k3 as it is,
here the KL's own gradient is followed (limr_jax/algorithms/kl.py).
"""

from configs import base


def get_config():
    """GRPO with k3 in the loss, divided by rows × the longest response."""
    c = base.get_config()
    c.num_steps = 187
    c.prompts_per_step = 64
    c.group_size = 4
    c.data.train = "math12k:train"
    c.benchmarks.names = "math500, gsm8k:test"
    c.reward = "math"
    c.rollout.temperature = 0.9
    c.rollout.max_prompt_length = 256
    c.rollout.max_response_length = 2048
    c.loss_normaliser = "constant"
    c.filter.tau = 0.0
    c.filter.keep_kl = False
    c.kl.coefficient = 0.04
    c.optimizer.learning_rate = 3e-6
    c.model.remat = True
    c.micro_batch_rows = 64
    return c
