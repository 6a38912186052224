"""Write a run's policy as a checkpoint that vLLM and transformers open.

    python launch/export.py --workdir RUN --out DIR [--step N] [--dtype bfloat16]
    python launch/export.py --workdir RUN --out DIR --peft

RUN is the workdir of launch/tpu.py or launch/sft.py, finished or not; its last
checkpoint is taken unless --step names another. DIR must not be there yet; it gets
config.json, model.safetensors (in parts and an index beyond 5 GB), the tokenizer's
files, generation_config.json and the chat template. The dtype is the checkpoint's that
the run started from (float32 after a random start) unless --dtype says otherwise. The
adapters of a run with LoRA are added to its base; with --peft DIR gets them alone, as
PEFT's adapter_config.json and adapter_model.safetensors, fp32. --init and --tokenizer
say where the model and the tokenizer that the run began from lie now, if they have
moved. The last line is one JSON object.
"""

import json
import time
from functools import partial

from limr_jax import platform
from limr_jax.config.load import Parser, run_main

with platform.importing_jax():
    import jax

    from limr_jax.data.tokenizer import load_tokenizer
    from limr_jax.errors import InputError
    from limr_jax.evaluation import trained_policy
    from limr_jax.models import hf_weights, lora, peft
    from limr_jax.models.from_config import init_digest, load_base, read_model_config
    from limr_jax.platform import resolve
    from limr_jax.sharding import make_mesh
    from limr_jax.storage import files
    from limr_jax.storage.array_digest import params_digest


def main(argv: list[str]) -> None:
    """Parse, load the checkpoint, write it in the Hugging Face layout."""
    parser = Parser("launch/export.py", __doc__)
    parser.add_argument(
        "--workdir", required=True, metavar="RUN", help="a run's folder"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the checkpoint, which must not be there",
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="a checkpoint of the run; default: the last one",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; default: that of the checkpoint which the run began from",
    )
    for flag, what in (("init", "model.init"), ("tokenizer", "tokenizer")):
        parser.add_argument(
            f"--{flag}",
            metavar="DIR",
            help=f"where the run's {what} lies now; default: where it did",
        )
    parser.add_argument(
        "--peft", action="store_true", help="the adapters alone, as PEFT has them"
    )
    options = parser.parse_args(argv)
    start = time.perf_counter()
    out = files.local(options.out, "--out")
    files.refuse_existing(out, "--out")
    files.check_writable(out, "--out")
    run = _run_of(options)
    tokenizer = load_tokenizer(resolve(run.tokenizer))
    config = read_model_config(run.model, tokenizer.vocab_size)
    step = (
        trained_policy.latest_step(options.workdir)
        if options.step is None
        else options.step
    )
    # Over all devices by `fsdp`: a model that one of them cannot hold is exported.
    mesh = make_mesh(data=1, fsdp=-1, tensor=1)
    if options.peft:
        _check_peft(run, config, options)
    params = trained_policy.load_params(
        options.workdir,
        step,
        model_config=config,
        mesh=mesh,
        load_base=partial(load_base, run, config, mesh),
    )
    summary = {
        "out": str(out),
        "step": step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "params_digest": params_digest(params),
    }
    if options.peft:
        peft.save(
            out,
            lora.split(params)[1],
            config,
            base_name=str(resolve(run.model.init)),
            base=init_digest(run.model.init),
        )
    else:
        _save(
            out,
            params,
            config=config,
            run=run,
            tokenizer=tokenizer,
            mesh=mesh,
            dtype=options.dtype,
        )
    summary["seconds"] = round(time.perf_counter() - start, 2)
    print(json.dumps(summary), flush=True)


def _run_of(options):
    """The run's config, with the places that the options name."""
    run = trained_policy.read_config(options.workdir)
    with run.unlocked():
        run.model.init = options.init or run.model.init
        run.tokenizer = options.tokenizer or run.tokenizer
    for flag, name, place in (
        ("init", "model.init", run.model.init),
        ("tokenizer", "tokenizer", run.tokenizer),
    ):
        if place == "random" or resolve(place).exists():
            continue
        if getattr(options, flag):
            raise InputError(f"--{flag}={place} is not there; check the path")
        raise InputError(
            f"{name}={place} of {options.workdir} is not there; give --{flag}=DIR with "
            "the place that it has now"
        )
    trained_policy.check_same(options.workdir, run.model)
    return run


def _check_peft(run, config, options) -> None:
    """InputError where there are no adapters, or no base that PEFT could open."""
    if config.lora is None:
        raise InputError(
            f"--peft: {options.workdir} has no adapters (model.lora.rank=0); leave it "
            "out"
        )
    if run.model.init == "random":
        raise InputError(
            f"--peft: the base of {options.workdir} is random and lies in no "
            "directory; leave it out for a merged checkpoint"
        )
    if options.dtype:
        raise InputError(
            f"--dtype={options.dtype} with --peft, which writes float32; leave it out"
        )


def _save(out, params, *, config, run, tokenizer, mesh, dtype) -> None:
    """Write the whole model, adapters added to its kernels."""
    params, config = lora.merge_on(mesh, params, config)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    hf_weights.save_params(
        out,
        params,
        config,
        # A random start has no checkpoint whose config.json could be taken over.
        source=None if run.model.init == "random" else resolve(run.model.init),
        tokenizer=resolve(run.tokenizer),
        dtype=dtype,
        token_ids={f"{k}_token_id": v for k, v in ids.items() if v is not None},
    )


if __name__ == "__main__":
    run_main(main)
