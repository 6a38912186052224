"""Qwen2.5-1.5B on one v5e chip (16 GB), as on Colab: LoRA over an int8 base."""

from configs import lora_tpu

REMEDIES = lora_tpu.remedies("Qwen2.5-1.5B")


def get_config(argument: str = ""):
    """GRPO, 32 problems of GSM8K x 8, response 512; arguments as in lora_tpu.py."""
    c = lora_tpu.get_config(argument, "Qwen2.5-1.5B")
    c.num_steps = 100
    c.prompts_per_step = 32
    c.data.train = "gsm8k:train"
    c.slice.type = "v5litepod-1"
    c.slice.problems = 7473
    c.slice.answer_length = 8
    c.rollout.max_prompt_length = 256
    c.rollout.max_response_length = 512
    c.rollout.slots = 256
    c.micro_batch_rows = 8
    return c
