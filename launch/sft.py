"""Fine-tune on solutions: python launch/sft.py --config configs/tiny_sft.py

The exported model (Hugging Face layout) lies in WORKDIR/model; with LoRA its adapters
are added to its base. The last line on stdout is one JSON object, the result.
"""

import json

from limr_jax.config import load as config_lib
from limr_jax.config.config_file import refuse_absent
from limr_jax.config.diff import from_defaults


def main(argv: list[str]) -> None:
    """Parse, check, then train."""
    config, options = config_lib.load(argv, __doc__, kind="sft_base")
    refuse_absent(config, options.config)
    from limr_jax import console, sft

    if options.dry_run:
        sft.checked_mesh(config, options.workdir)
        console.say(str(config))
        return
    console.say(from_defaults(config, "sft_base"))
    console.say(json.dumps(sft.train(config, options.workdir)))


if __name__ == "__main__":
    config_lib.run_main(main)
