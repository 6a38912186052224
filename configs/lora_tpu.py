"""GRPO by LoRA over an int8 base, as the configs of small TPU slices have it.

    python launch/tpu.py --config configs/v5e_8.py          # this, on a v5e-8

A 7B policy with fp32 masters and Adam needs 112 GB, more than seven times 16 GB. Here
the base is frozen and int8 (embedding and head are not), one copy for rollout, learner
and reference; what is learned are adapters of rank 32 beside all linear layers, with
scale 2 (arXiv:2106.09685), at ten times the rate of full training, as "LoRA without
regret" (Thinking Machines, 2025) has it. Groups whose rewards are all alike are dropped
before the update. The problems are MATH levels 3 to 5, as in LIMR, drawn uniformly: a
run of hours sees no epoch's end, so nothing could be chosen by curves.

Argument, as in `--config configs/v5e_8.py:kl=0.01`:

    kl=X         coefficient of the KL (k3, in the loss); the reference is the base
                 without the adapters, and takes no memory
"""

from configs import base, limr_tpu
from limr_jax.config.load import switches

remedies = limr_tpu.remedies

REMEDIES = remedies()


def get_config(argument: str = "", checkpoint: str = "Qwen2.5-Math-7B"):
    """64 prompts x 8, prompt 512, response 2,048, no KL."""
    c = base.get_config()
    c.num_steps = 40
    c.prompts_per_step = 64
    c.group_size = 8
    c.data.train = "math_lvl3to5:train"
    c.tokenizer = c.model.init = f"../models/{checkpoint}"
    c.model.preset = checkpoint.lower()
    c.model.base_dtype = "int8"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.remat = True
    c.mesh.data = 1
    c.slice.problems = 8523
    c.slice.answer_length = 64
    c.rollout.max_prompt_length = 512
    c.rollout.max_response_length = 2048
    c.rollout.compactions = 1
    c.reward = "math"
    c.loss_normaliser = "constant"  # Dr. GRPO's: long wrong answers are not favoured
    c.filter.tau = 0.0
    c.kl.coefficient = switches(argument, kl=0.0)["kl"]
    c.optimizer.learning_rate = 1e-5
    c.checkpoint.every = 2  # such a session may end at any time
    return c
