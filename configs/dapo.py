"""DAPO as its paper has it (arXiv:2503.14476): four changes to GRPO, and no KL.

    python launch/tpu.py --config configs/dapo.py \\
        --config.model.init=DIR --config.tokenizer=DIR

The paper's set-up: Qwen2.5-32B base, DAPO-Math-17k, 512 problems × 16 rollouts a step
in 16 updates of 512, clip 0.2 below and 0.28 above, groups that are all right or all
wrong drawn again, a mean over all tokens, responses to 20,480 tokens with a penalty
that grows over the last 4,096; AdamW, learning rate 1e-6 after 20 steps of warm-up.
Weight decay .1 is the released script's (verl, recipe/dapo). Its numbers, AIME24 avg@32
at T 1 and top-p .7 in %, each change on top of those above it:

    GRPO                          30   algorithm=grpo without what follows
    overlong filtering            36   mask_truncated=True
    clip-higher                   38   clip.high=0.28
    overlong penalty              41   overlong.buffer=4096
    token mean                    42   loss_normaliser=token
    dynamic sampling, all: DAPO   50   this config
    got                           –

The project's own account is that the best run had no overlong filter: here it is off.

Departures: the paper's rewards are 1 and −1, here 1 and 0, so the penalty weighs half.
Its problems are not among our sets, here the 12,000 of MATH. Steps are not published:
300, which are 4,800 updates, are this project's choice. A step draws at most 23 times
512 problems, none of them twice, in the script ten times 1,536. Surplus groups wait for
the next step, where the script drops them. The dual clip is not in the paper
(clip.dual=0), but in the script's trainer.
"""

from configs import base


def get_config():
    """GRPO's advantages, clip-higher, mixed groups alone, in tokens throughout."""
    c = base.get_config()
    c.num_steps = 300
    c.prompts_per_step = 512
    c.group_size = 16
    c.data.train = "math12k:train"
    c.benchmarks.names = "aime24@32@1.0"
    c.benchmarks.top_p = 0.7
    c.filter.groups = "mixed"
    c.filter.max_rounds = 23  # 11,776 of the 12,000 problems
    c.reward = "math"
    c.overlong.buffer = 4096
    c.overlong.weight = 0.5
    c.rollout.max_prompt_length = 2048
    c.rollout.max_response_length = 20480
    c.rollout.slots = 1024
    c.clip.high = 0.28
    c.loss_normaliser = "token"
    c.minibatches_per_step = 16
    c.model.remat = True
    c.micro_batch_rows = 64
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_steps = 20 * 16  # updates
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 0.1
    return c
