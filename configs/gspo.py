"""GSPO as its paper has it (arXiv:2507.18071): one ratio for a whole response.

    python launch/tpu.py --config configs/gspo.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: a cold start from Qwen3-30B-A3B base, GRPO's advantages, each step's
rollouts in 4 updates, the ratio clipped at 1 − 3e-4 and 1 + 4e-4. Its GRPO
baseline: clip 0.2 and 0.27 (--config.loss=clip --config.clip.low=0.2
--config.clip.high=0.27). Its numbers are curves of training reward, AIME24,
LiveCodeBench and CodeForces, above GRPO's at each step, and the share of tokens that
are clipped, 15 % against .13 %:

    got  –   (clipped_share in metrics.jsonl is that share)

Departures: the paper's model is a mixture of experts, which this project does not have;
any dense one will do. It writes its formulas without a KL and does not say whether its
runs had one: here there is none. Batch, learning rate, lengths and data are not
published: 256 problems × 8 rollouts of MATH, 1e-6, 4,096 tokens and 70 steps, an epoch
and a half, are this project's choice.
"""

from configs import base


def get_config():
    """GRPO's advantages with the ratio, and the clip, of whole responses."""
    c = base.get_config()
    c.num_steps = 70
    c.prompts_per_step = 256
    c.group_size = 8
    c.data.train = "math12k:train"
    c.benchmarks.names = "aime24@32, math500"
    c.reward = "math"
    c.loss = "gspo"
    c.clip.low = 3e-4
    c.clip.high = 4e-4
    c.rollout.max_prompt_length = 1024
    c.rollout.max_response_length = 4096
    c.minibatches_per_step = 4
    c.model.remat = True
    c.micro_batch_rows = 64
    c.optimizer.learning_rate = 1e-6
    return c
