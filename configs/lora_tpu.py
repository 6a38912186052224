"""x"""

from configs import base, limr_tpu
from limr_jax.config.load import switches

remedies = limr_tpu.remedies


def get_config(argument: str = "", checkpoint: str = "Qwen2.5-Math-7B"):
    given = switches(argument, kl=0.0)
    c = base.get_config()
    c.num_steps = 50
    c.prompts_per_step = 64
    c.group_size = 8
    c.data.train = "math_lvl3to5:train"
    c.data.eval = ""
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
    c.loss_normaliser = "constant"
    c.filter.tau = 0.0
    c.kl.coefficient = given["kl"]
    c.optimizer.learning_rate = 1e-5
    c.checkpoint.every = 5
    return c
