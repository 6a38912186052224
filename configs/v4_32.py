"""Qwen2.5-Math-7B on a v4-32 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v4_32.py
    python launch/tpu.py --config configs/v4_32.py --compile_only      # needs no TPU

The latter: at most 28.00 of 30.75 GiB a chip (generate; update 27.41); 704 full-length
rollouts fit at a time, and 512 slots are 16 waves. A bound, not a measurement, every
response at its longest: a step takes at least 1,468 s, 168 steps 69 hours. A decode
step of simulated lengths moves 1.16 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  854      375            133
    generate                 91      393             14
    reference, values       222       93             46

Meshes compared, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    4 x 4            512  28.00 (generate)      1,468 s     854       393         222
    8 x 2            256  29.30 (generate)      1,903 s     854       827         222

On 4 x 4 with 256 slots generation reads 646 TB a chip and takes 25.3 GiB; with 512 it
reads 471 TB and takes 28.0, as each reading of the weights serves twice the rows.

The report took 153 s, 296 s of processor time and 5.7 GiB of memory.
Measured on a v4-32: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument)
    c.slice.type = "v4-32"
    c.mesh.fsdp = 4
    c.mesh.tensor = 4
    c.rollout.slots = 512
    c.micro_batch_rows = 16
    return c
