"""Qwen2.5-1.5B on one v5e chip (16 GB), as on Colab: LoRA over an int8 base.

    python launch/tpu.py --config configs/v5e_1.py
    python launch/tpu.py --config configs/v5e_1.py --compile_only
    python launch/tpu.py --config configs/v5e_1.py --plan 'v5e-1, 3.5h'

The compile report, 2026-11-30: at most 6.44 of 15.75 GiB (generate; update 4.37), all
256 rollouts at a time, and 936 would fit. A decode step reads 1.85 GB of weights, .59
of what a bf16 base would be: the embedding, which is the head too, stays bf16. A bound,
not a measurement, every response at its longest: a step takes at least 14 s, of which
generation 4 and the update 10. Three and a half hours hold 903 steps at the bound, and
301 at a third of it; this run has 100. Micro-batches of 16 and 32 rows have the same
bound, and 6.5 and 10.4 GiB. The report took 184 s beside other work.

Measured on a v5e: nothing yet. notebooks/colab_v5e1.ipynb is a session with it.
"""

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
