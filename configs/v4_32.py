"""Qwen2.5-Math-7B on a v4-32 (16 chips, 4 hosts): LIMR's recipe with online LIM.

    python launch/tpu.py --config configs/v4_32.py
    python launch/tpu.py --config configs/v4_32.py --compile_only      # needs no TPU

Its checkpoint and tokenizer are to lie in ../models/Qwen2.5-Math-7B. The mesh of 4 x 4:
kv heads divide over `tensor`, and decode gathers its weights over `fsdp` once a step.
--compile_only on two cores, first in the queue: 287 s, 296 s of processor time; at most
28.67 of 30.75 GiB a chip (generate; update 25.19); 384 full-length rollouts fit.
Measured on a v4-32: nothing yet.
"""

from configs import base


def get_config():
    """arXiv:2502.11886: 1,024 prompts x 8, response 3,072, KL 0.01."""
    c = base.get_config()
    c.num_steps = 120
    c.prompts_per_step = 1024
    c.group_size = 8
    c.data.train = "math_lvl3to5:train"
    c.tokenizer = "../models/Qwen2.5-Math-7B"
    c.model.init = "../models/Qwen2.5-Math-7B"
    c.model.preset = "qwen2.5-math-7b"
    c.model.remat = True
    c.mesh.data = 1
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.slice.type = "v4-32"
    c.slice.problems = 8523
    c.slice.answer_length = 64
    c.sampler.name = "lim"
    c.rollout.max_prompt_length = 1024
    c.rollout.max_response_length = 3072
    c.rollout.slots = 256
    c.rollout.shrinks = 1
    c.reward = "limr"
    c.micro_batch_rows = 32
    c.kl.coefficient = 0.01
    c.filter.tau = 0.0
    c.optimizer.learning_rate = 1e-6
    return c
