"""Write a run's policy as a checkpoint that vLLM and transformers open.

    python launch/export.py --workdir RUN --out DIR [--step N] [--dtype bfloat16]

RUN is the workdir of launch/tpu.py or launch/sft.py, finished or not; its last
checkpoint is taken unless --step names another. DIR must not be there yet; it gets
config.json, model.safetensors (in parts and an index beyond 5 GB), the tokenizer's
files, generation_config.json and the chat template. The dtype is the checkpoint's that
the run started from (float32 after a random start) unless --dtype says otherwise. The
last line is one JSON object.
"""

import json
import time

from limr_jax import platform
from limr_jax.config.load import Parser, run_main

with platform.importing_jax():
    import jax

    from limr_jax.data.tokenizer import load_tokenizer
    from limr_jax.evaluation import trained_policy
    from limr_jax.models import hf_weights
    from limr_jax.models.from_config import read_model_config
    from limr_jax.platform import resolve
    from limr_jax.sharding import make_mesh
    from limr_jax.storage import files
    from limr_jax.storage.array_digest import params_digest


def main(argv: list[str]) -> None:
    """Parse, load the checkpoint, write it in the Hugging Face layout."""
    parser = Parser("launch/export.py", __doc__)
    parser.add_argument("--workdir", required=True, metavar="RUN")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--step", type=int, metavar="N")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args(argv)
    start = time.perf_counter()
    out = files.local(options.out, "--out")
    files.refuse_existing(out, "--out")
    run = trained_policy.read_config(options.workdir)
    tokenizer = load_tokenizer(resolve(run.tokenizer))
    config = read_model_config(run.model, tokenizer.vocab_size)
    step = (
        trained_policy.latest_step(options.workdir)
        if options.step is None
        else options.step
    )
    # Over all devices by `fsdp`: a model that one of them cannot hold is exported.
    params = trained_policy.load_params(
        options.workdir,
        step,
        model_config=config,
        mesh=make_mesh(data=1, fsdp=-1, tensor=1),
    )
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    hf_weights.save_params(
        out,
        params,
        config,
        # A random start has no checkpoint whose config.json could be taken over.
        source=None if run.model.init == "random" else resolve(run.model.init),
        tokenizer=resolve(run.tokenizer),
        dtype=options.dtype,
        token_ids={f"{k}_token_id": v for k, v in ids.items() if v is not None},
    )
    print(
        json.dumps(
            {
                "out": str(out),
                "step": step,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "params_digest": params_digest(params),
                "seconds": round(time.perf_counter() - start, 2),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    run_main(main)
