"""Small random policies, their prompts, and programs of them that several tests run."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import jit
from limr_jax.learner import logprobs
from limr_jax.learner.batch import Batch, PackedBatch
from limr_jax.models import transformer
from limr_jax.models.config import ComputeConfig
from limr_jax.models.transformer import ModelConfig
from limr_jax.rollout import drafts
from limr_jax.rollout import generate as rollout
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.sharding import BATCH, make_mesh, param_shardings

# For programs that run a few times: the compiler's time is most of a test's.
QUICK = jit.EVERY | jit.known(
    xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False
)
QWEN = ModelConfig(
    vocab_size=40,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    qkv_bias=True,
)
# A window shorter than a prompt: its rings turn in prefill and in decode.
GEMMA = ModelConfig(
    vocab_size=40,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    pattern=("sliding", "full"),
    window=5,
    activation="gelu_tanh",
    norm_plus_one=True,
    out_norms=True,
    scale_embedding=True,
    attention_softcap=5.0,
    logit_softcap=3.0,
)
# About one token in 20 ends a response.
SHAPE = GenerateConfig(group=2, response_length=12, slots=16, stop_ids=(3, 7), pad_id=1)
PROMPTS, LENGTH, GROUP = 8, 8, SHAPE.group  # P, L, G
GENERATE = jax.jit(
    rollout.generate,
    static_argnames=("config", "compute"),
    compiler_options=QUICK,
)


LEARNED = jax.jit(
    logprobs.response_logprob,
    static_argnames=("response_length", "compute"),
    compiler_options=QUICK,
)
# Two texts of seven tokens.
TOKENS_BT = np.random.default_rng(1).integers(0, 40, (2, 7))
POSITION_BT = np.tile(np.arange(7), (2, 1))


def quick(function):
    """Jitted, for a program that runs a few times."""
    return jax.jit(function, compiler_options=QUICK)


def logits_of(params, *, config, dtype=jnp.float32, remat=False):
    """The logits of the two texts."""
    hidden_BTD = transformer.forward(
        params, TOKENS_BT, POSITION_BT, config=config, dtype=dtype, remat=remat
    )
    return transformer.unembed(params, hidden_BTD, config=config, dtype=dtype)


def leaves_of(tree) -> dict:
    """Each leaf by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def drift(params, compute: ComputeConfig) -> np.ndarray:
    """|Δ log p| of each sampled token of eight rollouts, rollout against learner."""
    problem_P = np.arange(4, dtype=np.int32)
    written = GENERATE(
        params,
        *prompts_of(problem_P),
        problem_P,
        key_of(),
        sampling(),
        config=SHAPE,
        compute=compute,
    )
    learner_BT, _ = LEARNED(
        params,
        *written.sequences(),
        None,
        1.0,
        response_length=SHAPE.response_length,
        compute=compute,
    )
    difference_BT = np.abs(np.asarray(learner_BT) - np.asarray(written.logprob_BT))
    return difference_BT[np.asarray(written.mask_BT)]


def fp32(config: ModelConfig, **options) -> ComputeConfig:
    return ComputeConfig(config, jnp.float32, **options)


def unpacked(batch: Batch) -> PackedBatch:
    """A row a rollout."""
    return PackedBatch(
        tokens_RW=batch.tokens_BS,
        position_RW=batch.position_BS,
        **{
            name.replace("_BT", "_RY"): getattr(batch, name)
            for name in batch.__dataclass_fields__
            if name.endswith("_BT") and name != "target_BT"
        },
    )


def random_params(config, seed=0):
    """Like init_params, but nothing at 0 or 1 and large enough to matter."""
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    return treedef.unflatten(
        [np.float32(0.2 * random.standard_normal(leaf.shape)) for leaf in leaves]
    )


def prompts_of(problem_P, L=LENGTH):
    """The prompt of each problem, 2 to 8 tokens, left-padded: tokens and positions."""
    tokens_PL = np.full((len(problem_P), L), 1, np.int32)
    position_PL = np.full((len(problem_P), L), -1, np.int32)
    for p, problem in enumerate(problem_P):
        random = np.random.default_rng([5, problem])
        length = random.integers(2, LENGTH + 1)
        tokens_PL[p, L - length :] = random.integers(0, 40, length)
        position_PL[p, L - length :] = np.arange(length)
    return tokens_PL, position_PL


def sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0) -> Sampling:
    return Sampling(
        np.float32(temperature), np.float32(top_p), np.int32(top_k), np.float32(min_p)
    )


def key_of(seed=0, step=0):
    return jax.random.fold_in(jax.random.key(seed), step)


def generate(
    problem_P=range(PROMPTS),
    L=LENGTH,
    *,
    config=QWEN,
    key=None,
    expected_P=None,
    asked_PG=None,
    draft_PDT=None,
    **changes,
):
    """A Rollout of these problems; `changes` of SHAPE compile anew, others do not."""
    drawn = sampling(**{k: changes.pop(k) for k in [*changes] if not hasattr(SHAPE, k)})
    return GENERATE(
        random_params(config),
        *prompts_of(problem_P, L),
        np.array(problem_P, np.int32),
        key_of() if key is None else key,
        drawn,
        expected_P,
        asked_PG,
        draft_PDT,
        config=dataclasses.replace(SHAPE, **changes),
        compute=fp32(config),
    )


def generate_on_mesh(shape, expected_P=None, asked_PG=None, draft_PDT=None, **changes):
    """As the loop runs it: rows and parameters over the devices, under its mesh."""
    mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
    params = random_params(QWEN)
    rows = jax.NamedSharding(mesh, BATCH)
    with jax.set_mesh(mesh):
        # A jit of its own: a compiled program is of one mesh.
        program = jax.jit(
            rollout.generate,
            static_argnames=("config", "compute"),
            out_shardings=rows,
            compiler_options=QUICK,
        )
        return program(
            jax.device_put(params, param_shardings(mesh, params)),
            *jax.device_put(prompts_of(range(PROMPTS)), rows),
            jax.device_put(np.arange(PROMPTS, dtype=np.int32), rows),
            key_of(),
            sampling(),
            expected_P if expected_P is None else jax.device_put(expected_P, rows),
            asked_PG if asked_PG is None else jax.device_put(asked_PG, rows),
            draft_PDT if draft_PDT is None else jax.device_put(draft_PDT, rows),
            config=dataclasses.replace(SHAPE, **changes),
            compute=fp32(QWEN),
        )


def same(a: Rollout, b: Rollout, rows=slice(None)):
    """The same tokens and masks; the same numbers but for rounding."""
    for name in ("response_BT", "mask_BT", "truncated_B"):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        np.testing.assert_array_equal(x[rows], y, err_msg=name)
    for name in ("logprob_BT", "entropy_BT"):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        np.testing.assert_allclose(x[rows], y, atol=1e-5, err_msg=name)


def tokens_of(written: Rollout) -> np.ndarray:
    """The rollouts of each problem as drafts have them, int32 [P, G, T]."""
    tokens_BT = np.where(written.mask_BT, written.response_BT, drafts.NONE)
    return tokens_BT.reshape(PROMPTS, -1, tokens_BT.shape[1]).astype(np.int32)


def wrong_at_the_end(draft_PDT) -> np.ndarray:
    """Each rollout as it will be but for its last token."""
    wrong = draft_PDT.copy()
    last_PD = (draft_PDT >= 0).sum(axis=2) - 1
    p, d = np.indices(last_PD.shape)
    wrong[p, d, last_PD] = (wrong[p, d, last_PD] + 1) % 40
    return wrong


def decode_greedily(params, token_B, cache, steps, *, first, config, dtype):
    """(the last tokens, the cache) after decode steps from column `first` on."""
    how = {"config": config, "dtype": dtype}

    def step(i, token_B_and_cache):
        token_B, cache = token_B_and_cache
        token_B1 = token_B[:, None]
        column_B = jnp.full_like(token_B, first + i)
        hidden_B1D, cache = transformer.decode(
            params, token_B1, token_B1, cache, column_B, **how
        )
        logits_BV = transformer.unembed(params, hidden_B1D[:, 0], **how)
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), cache

    return jax.lax.fori_loop(0, steps, step, (token_B, cache))
