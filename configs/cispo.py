"""CISPO (arXiv:2506.13585) in the recipe of ScaleRL (arXiv:2510.13786).

    python launch/tpu.py --config configs/cispo.py \\
        --config.model.init=DIR --config.tokenizer=DIR

ScaleRL's set-up: an 8B model after supervised fine-tuning, Polaris-53K, updates of 48
problems × 16 rollouts, prompts to 2,048 tokens, 12,288 of thinking and 2,048 of the
solution, CISPO with weights of 5 at most and no lower bound, groups of one outcome left
out, advantages divided by the batch's std, no KL; AdamW, constant learning rate 5e-7
after 100 updates of warm-up, ε 1e-15, weight decay .01. Its number is the pass rate on
held-out problems of the training set that its curve tends to, .61 (three runs differ by
.02 at most); 7,400 updates were run.

    got  –

Departures: the paper's rollouts are written while up to 8 updates are made. This
project's are not, so a step is 384 problems in 8 updates, the paper's "PPO off-policy
8", to which its own is preferred. Every token of an update weighs the same, in the
paper every problem does. Advantages have no std: AdamW does not see their scale.
Rewards are 1 and 0, there 1 and −1. Problems whose pass rate came to .9 are drawn on
(there they are dropped); thinking is not interrupted; the problems are the 12,000 of
MATH. MiniMax-M1, where CISPO is from, compares it with DAPO on Qwen2.5-32B: as good
after half as many steps; of its settings too little is published for a config.
"""

from configs import base


def get_config():
    """Log-probabilities weighed by clipped ratios; no token loses its gradient."""
    c = base.get_config()
    c.num_steps = 925  # of 8 updates
    c.prompts_per_step = 8 * 48
    c.group_size = 16
    c.data.train = "math12k:train"
    c.benchmarks.names = "aime24@16, math500"
    c.algorithm = "dr_grpo"  # above the group's mean, without its std
    c.reward = "math"
    c.loss = "cispo"
    c.clip.low = 1.0
    c.clip.high = 4.0
    c.filter.tau = 0.0
    c.filter.normaliser = "kept"
    c.rollout.max_prompt_length = 2048
    c.rollout.max_response_length = 12288 + 2048
    c.rollout.slots = 768
    c.minibatches_per_step = 8
    c.model.remat = True
    c.micro_batch_rows = 64
    c.optimizer.learning_rate = 5e-7
    c.optimizer.warmup_steps = 100
    c.optimizer.b2 = 0.999
    c.optimizer.epsilon = 1e-15
    c.optimizer.weight_decay = 0.01
    return c
