"""Qwen2.5-Math-7B on a v5e-8 (8 chips, 1 host), as on Kaggle: LoRA over an int8 base.

    python launch/tpu.py --config configs/v5e_8.py
    python launch/tpu.py --config configs/v5e_8.py --compile_only
    python launch/tpu.py --config configs/v5e_8.py --plan 'v5e-8, 9h'

The compile report, 2026-11-30: at most 10.79 of 15.75 GiB a chip (generate; update
7.93), all 512 rollouts at a time, and 864 would fit. A decode step reads 1.95 GB of
weights a chip, .54 of what a bf16 base would be. A bound, not a measurement, every
response at its longest: a step takes at least 53 s, of which generation 18 and the
update 35. Nine hours hold 613 steps at the bound, and 204 at a third of it; this run
has 150. The report took 246 s beside other work, and 2.8 GiB of memory.

Other meshes, by --plan (bounds; 512 slots, 8 rows):

    data x fsdp x tensor   GiB a chip   a step, s
    2 x 1 x 4                   10.8         53
    1 x 2 x 4                   12.6         54
    4 x 1 x 2                   13.0         58
    8 x 1 x 1                   26.0    does not fit

Measured on a v5e-8: nothing yet. notebooks/kaggle_v5e8.ipynb is a session with it.
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
