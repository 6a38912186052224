"""Qwen2.5-Math-1.5B on a v5litepod-16 (16 chips, 4 hosts): LIMR by PPO with online LIM.

    python launch/tpu.py --config configs/v5e_16.py
    python launch/tpu.py --config configs/v5e_16.py --compile_only

The latter: at most 14.11 of 15.75 GiB a chip (generate; update 8.56); 960 full-length
rollouts fit at a time, and 768 slots are 11 waves. A bound, not a measurement, every
response at its longest: a step takes at least 746 s, 168 steps 35 hours. A decode step
of simulated lengths moves 1.23 times the weights and live cache.

    seconds at least    compute   memory   interconnect
    update                  276      356             82
    generate                 31      253              3
    reference, values        70      137             42

Meshes compared, by --config.mesh.fsdp, mesh.tensor and rollout.slots:

    fsdp x tensor  slots  GiB a chip              a step  update  generate  the others
    8 x 2            768  14.11 (generate)        746 s     356       253         137
    8 x 2            512  12.14 (generate)        770 s     356       277         137
    4 x 4            256  18.52 (generate)  does not fit    276                    70

XLA makes windowed products of weights that lie over many chips of fsdp, and writes the
partial sums again for each: reference and values move 112 TB a chip on 8 x 2 and 51 on
4 x 4. But tensor=4 does not divide 2 kv heads: each chip has the cache of both, and 256
slots do not fit.

The report took 520 s beside other work, 383 s of processor time and 3.7 GiB of memory.
Measured on a v5e-16: nothing yet.
"""

from configs import limr_tpu


def get_config(argument: str = ""):
    """PPO with a critic, 1,024 prompts x 8; arguments as in limr_tpu.py."""
    c = limr_tpu.get_config(argument, "Qwen2.5-Math-1.5B")
    c.slice.type = "v5litepod-16"
    c.mesh.fsdp = 8
    c.mesh.tensor = 2
    c.rollout.slots = 768
    c.micro_batch_rows = 32
    return c
