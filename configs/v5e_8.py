"""Qwen2.5-Math-7B on a v5e-8 (8 chips, 1 host)."""

from configs import lora_tpu

REMEDIES = lora_tpu.remedies("Qwen2.5-Math-7B")


def get_config(argument: str = ""):
    c = lora_tpu.get_config(argument, "Qwen2.5-Math-7B")
    c.slice.type = "v5litepod-8"
    c.mesh.fsdp = 2
    c.mesh.tensor = 4
    c.rollout.slots = 256
    c.micro_batch_rows = 8
    return c
