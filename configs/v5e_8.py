"""Qwen2.5-Math-7B on a v5e-8 (8 chips, 1 host), as on Kaggle: LoRA over an int8 base.

    python launch/tpu.py --config configs/v5e_8.py
    python launch/tpu.py --config configs/v5e_8.py --compile_only
    python launch/tpu.py --config configs/v5e_8.py --plan 'v5e-8, 9h'

REPORT
"""

from configs import lora_tpu

REMEDIES = lora_tpu.remedies("Qwen2.5-Math-7B")


def get_config(argument: str = ""):
    """GRPO, 64 prompts x 8, response 2,048; arguments as in lora_tpu.py."""
    c = lora_tpu.get_config(argument, "Qwen2.5-Math-7B")
    c.num_steps = 150
    c.slice.type = "v5litepod-8"
    c.mesh.data = 2
    c.mesh.tensor = 4
    c.rollout.slots = 512
    c.micro_batch_rows = 8
    return c
