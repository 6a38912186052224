"""Bad input in bulk: whatever a user gives works, or is one clear line.

CI tries some cases of each kind, the same each time; `-m soak` tries 10,000 in all,
others each time. tests/fuzz.py says what must hold.
"""

import dataclasses
import gzip
import itertools
import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import textwrap

import gguf
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from fuzz import (
    CHANGES,
    EDITS,
    HURTFUL_TEXTS,
    SCALARS,
    TEXTS,
    VALUES,
    edited,
    edited_json,
    json_bytes,
    search,
    survives,
)
from tiny_run import FIELDS, ROOT, configure, write_problems
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from limr_jax.check import check
from limr_jax.config import config_file, load
from limr_jax.data import chat_template
from limr_jax.data.problems import load_problems, tokenize
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.evaluation import trained_policy
from limr_jax.models import (
    gguf_checkpoint,
    gguf_files,
    hf_config,
    hf_weights,
    lora,
    peft,
)
from limr_jax.models.config import Lora
from limr_jax.models.hf_config import parse_config
from limr_jax.models.hf_names import param_shapes
from limr_jax.rewards import user_reward
from limr_jax.samplers import score_file
from limr_jax.sharding import make_mesh
from limr_jax.storage import checkpoint, metrics, rollout_dump, workdir

ASSETS = ROOT / "limr_jax/assets/arithmetic"


def cases(few: int, many: int):
    """How many cases a test tries: so many in CI, so many in the soak."""
    return pytest.mark.parametrize(
        "examples", [few, pytest.param(many, marks=pytest.mark.soak)]
    )


@pytest.fixture
def folders(tmp_path):
    """Makes a new, empty folder at each call; the one before is removed."""
    numbers = itertools.count()

    def make():
        number = next(numbers)
        shutil.rmtree(tmp_path / str(number - 1), ignore_errors=True)
        (tmp_path / str(number)).mkdir()
        return tmp_path / str(number)

    return make


# --- Configs --------------------------------------------------------------------------

NAMES = [name for name, _ in config_file.leaves(configure("x.jsonl").to_dict())]
ARGUMENTS = TEXTS.filter(lambda text: len(text) < 2**16) | SCALARS.map(repr)
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(NAMES) | TEXTS, ARGUMENTS), min_size=1, max_size=3
)


@cases(20, 1_500)
def test_overrides_of_every_field(tmp_path, examples):
    base = ["--config", str(ROOT / "configs/base.py")]

    def check_case(case):
        argv = base + [f"--config.{name}={text}" for name, text in case]
        survives(lambda: check(load.load(argv, kind="base")[0]), tmp_path)

    search(OVERRIDES, check_case, examples=examples)


@cases(10, 400)
def test_one_value_for_every_field(tmp_path, examples):
    """Through the launcher's dry run, which reads data and asks for the devices."""
    main = runpy.run_path(str(ROOT / "launch/tpu.py"))["main"]
    train = write_problems(tmp_path / "train.jsonl", 10)
    fields = FIELDS | {"data.train": train, "mesh.fsdp": 4, "mesh.tensor": 2}
    base = ["--config", str(ROOT / "configs/base.py"), "--dry_run"]
    base += [f"--config.{name}={value}" for name, value in fields.items()]
    base += ["--workdir", str(tmp_path / "run")]
    values = st.integers(-2, 2**40) | st.floats(-1e9, 1e9) | ARGUMENTS

    def check_case(case):
        name, value = case
        argv = [*base, f"--config.{name}={value}"]
        survives(lambda: main(argv), tmp_path)
        assert not (tmp_path / "run").exists()

    search(st.tuples(st.sampled_from(NAMES), values), check_case, examples=examples)


CONFIG = (ROOT / "configs/tiny.py").read_bytes()
# What a config file of one's own may give back, or do to the fields it starts from.
BODIES = st.one_of(
    st.tuples(st.sampled_from(NAMES), VALUES).map(
        lambda x: (
            f"config = base.get_config()\nconfig.update_from_flattened_dict("
            f"{{{x[0]!r}: {x[1]!r}}})\nreturn config"
        )
    ),
    st.tuples(st.sampled_from(NAMES), VALUES).map(
        lambda x: f"config = base.get_config()\nconfig.{x[0]} = {x[1]!r}\nreturn config"
    ),
    VALUES.map(lambda x: f"return {x!r}"),
    VALUES.map(lambda x: f"import ml_collections as m\nreturn m.ConfigDict({x!r})"),
    TEXTS.map(lambda x: f"raise Exception({x!r})"),
    TEXTS.map(lambda x: f"raise SystemExit({x!r})"),
    TEXTS.map(
        lambda x: f"class E(Exception):\n  def __str__(self): return {x!r}\nraise E"
    ),
    st.just("return get_config()"),
    st.just("class E(Exception):\n  __str__ = None\nraise E"),
    st.just("config = base.get_config()\nconfig.a = config\nreturn config"),
)


HEAD = "from configs import base\nnan = inf = 1e999\ndef get_config():\n"


@cases(25, 900)
def test_config_files(folders, examples):
    def check_case(case):
        folder = folders()
        kind, edits, body = case
        if kind:
            content = edited(CONFIG, edits)
        else:
            written = HEAD + textwrap.indent(body, "  ") + "\n"
            content = written.encode("utf-8", "surrogatepass")
        (folder / "mine.py").write_bytes(content)
        argv = ["--config", str(folder / "mine.py")]
        survives(lambda: check(load.load(argv, kind="base")[0]), folder)

    search(st.tuples(st.booleans(), EDITS, BODIES), check_case, examples=examples)


# --- Data -----------------------------------------------------------------------------

ROWS = [
    {"id": "a", "problem": "1+1=", "answer": "2", "level": 1},
    {"id": 7, "prompt": [{"role": "user", "content": "é"}], "answer": 2.5},
    {"id": "c", "prompt": "1+2=", "answer": ["3"], "source": {"a": [None, True]}},
]
ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "utf-32", "latin-1"])
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", ",\n", " \x0b"])


def jsonl(rows, end: str = "\n", encoding: str = "utf-8") -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    text = end.join(json_bytes(row).decode() for row in rows)
    return text.encode(encoding, "backslashreplace")


FILES = st.tuples(
    CHANGES | st.just([]), st.just([]) | EDITS, ENDS, ENCODINGS, st.booleans()
)


def file_of(rows, case) -> bytes:
    changes, edits, end, encoding, twice = case
    rows = edited_json(rows, changes)
    content = jsonl(rows, end, encoding)
    if twice:  # a name that stands in an object twice
        content = content.replace(b'{"id"', b'{"id": 1, "id"')
    return edited(content, edits)


@cases(25, 1_200)
def test_problem_files(folders, examples):
    tokenizer = load_tokenizer(ASSETS)

    def check_case(case):
        folder = folders()
        name = "a.json" if len(case[0]) % 2 else "a.jsonl"
        (folder / name).write_bytes(file_of(ROWS, case))

        def read():
            problems = load_problems(str(folder / name), data_dir="nowhere")
            assert problems.digest_with_columns
            # What was read is written again, in the rollouts' dump.
            json_bytes([problems.row(i) for i in range(len(problems))])
            tokenize(problems, tokenizer, max_prompt_length=64)

        survives(read, folder)

    search(FILES, check_case, examples=examples)


LIM = runpy.run_path(str(ROOT / "launch/lim.py"))["main"]
CURVES = [{"id": "a", "rewards": [0, 0.5, 1], "lim_score": 0.5}, {"id": "b"}]
CURVES[1] |= {"rewards": [1, None, 0.25], "lim_score": None}


@cases(12, 500)
def test_files_of_scores_and_curves(folders, examples):
    def check_case(case):
        folder = folders()
        (folder / "a.jsonl").write_bytes(file_of(CURVES, case))
        out = ["--out", str(folder / "out.jsonl")]
        source = str(folder / "a.jsonl")
        survives(lambda: score_file.read_scores(source), folder)
        survives(lambda: LIM(["score", "--rewards", source, *out]), folder)

    search(FILES, check_case, examples=examples)


# What each framework writes, and where: studies/foreign_dumps.py.
FOREIGN = {
    "verl": (
        "{}.jsonl",
        [{"input": "1+1=", "output": "2", "gts": "2", "score": 1.0, "step": 1}] * 2,
    ),
    "prime-rl": (
        "step_{}/train_rollouts.jsonl",
        [{"example_id": 3, "reward": 0.5, "task": "a"}] * 2,
    ),
    "openrlhf": ("rollouts.jsonl", [{"step": 1, "prompt": "1+1=", "reward": 1}] * 2),
}


@cases(12, 500)
def test_dumps_of_other_frameworks(folders, examples):
    def check_case(case):
        framework, files = case
        name, rows = FOREIGN[framework]
        folder = folders()
        dump = folder / "dump"
        for step in (1, 2):
            path = dump / name.format(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of(rows, files))
        argv = ["score", "--from", framework, "--run", str(dump)]
        survives(lambda: LIM([*argv, "--out", str(folder / "out.jsonl")]), folder)

    search(st.tuples(st.sampled_from([*FOREIGN]), FILES), check_case, examples=examples)


@cases(8, 250)
def test_parquet(folders, examples):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {"step": [1, 1], "prompt": ["a", "b"], "completion": ["1", "2"]}
        | {"reward": [0.0, 1.0], "advantage": [0.0, 1.0]}
    )
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(table, buffer)
    whole = buffer.getvalue().to_pybytes()

    def check_case(edits):
        folder = folders()
        (folder / "dump").mkdir()
        path = folder / "dump/completions_1.parquet"
        path.write_bytes(edited(whole, edits))
        argv = ["score", "--from", "trl", "--run", str(folder / "dump")]
        survives(lambda: LIM([*argv, "--out", str(folder / "out.jsonl")]), folder)

    search(EDITS, check_case, examples=examples)


# --- Tokenizers and templates ---------------------------------------------------------

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
CHATS = [
    [{"role": "user", "content": "one + two </s> é 漢\n<|im_end|>"}],
    [{"role": "system", "content": "x"}, {"role": "user", "content": ""}],
]


def tokenizer_json() -> dict:
    """A byte-level BPE with six special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *letters])}
    library = tokenizers.Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("x", "y")]
    )
    library.add_special_tokens(SPECIALS)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return json.loads(library.to_str())


def use(tokenizer):
    """All that a run asks of a tokenizer."""
    rows = tokenizer.encode_chats(CHATS) + tokenizer.encode_batch(["a b", "", "é\0"])
    for row in [*rows, [0, 1, tokenizer.vocab_size - 1, tokenizer.eos_id]]:
        tokenizer.decode(row)
        tokenizer.decode(row, special=True)


BESIDE = {
    "tokenizer_config.json": {
        "eos_token": "</s>",
        "pad_token": {"content": "<pad>"},
        "add_bos_token": True,
        "added_tokens_decoder": {"5": {"content": "<pad>", "special": True}},
        "chat_template": "{% for m in messages %}{{ m.role }}{{ m.content }}</s>"
        "{% endfor %}",
    },
    "generation_config.json": {"eos_token_id": [2, 4], "bos_token_id": 1},
    "special_tokens_map.json": {"eos_token": "</s>"},
    "added_tokens.json": {"<tool>": 300},
}
TOKENIZERS = st.tuples(
    st.sampled_from(["tokenizer.json", *BESIDE]), CHANGES, st.just([]) | EDITS
)


@cases(20, 800)
def test_tokenizer_jsons(folders, examples):
    base = {"tokenizer.json": tokenizer_json(), **BESIDE}
    del base["added_tokens.json"]

    def check_case(case):
        name, changes, edits = case
        folder = folders()
        for each, content in base.items():
            (folder / each).write_bytes(json_bytes(content))
        changed = edited_json(base[name] if name in base else BESIDE[name], changes)
        (folder / name).write_bytes(edited(json_bytes(changed), edits))
        survives(lambda: use(load_tokenizer(folder)), folder)

    search(TOKENIZERS, check_case, examples=examples)


@cases(10, 300)
def test_sentencepiece_models(folders, shared, examples):
    models = [
        (ASSETS / "tokenizer.model").read_bytes(),
        (shared / "tokenizers/sentencepiece/test_model.model").read_bytes(),
    ]

    def check_case(case):
        which, edits = case
        folder = folders()
        (folder / "tokenizer.model").write_bytes(edited(models[which], edits))
        survives(lambda: use(load_tokenizer(folder)), folder)

    search(st.tuples(st.integers(0, 1), EDITS), check_case, examples=examples)


@pytest.mark.soak
def test_a_real_tokenizer_json(folders, shared):
    """Of Qwen2, seven megabytes: it takes a second to read."""
    whole = (shared / "tokenizers/qwen2/tokenizer.json").read_bytes()

    def check_case(edits):
        folder = folders()
        (folder / "tokenizer.json").write_bytes(edited(whole, edits, near=5_000))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
        survives(lambda: use(load_tokenizer(folder)), folder)

    search(EDITS, check_case, examples=150)


SNIPPETS = [
    "{{ messages }}",
    "{{ messages[0].content }}",
    "{{ messages[0]['role'] * 10**9 }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
    "{{ 9**9**9 }}",
    "{{ 'a' * 10**10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ ('%d' ~ 'a') % 10**5000 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ raise_exception('no\n\x1b[2J' ~ messages) }}",
    "{{ raise_exception(1/0) }}",
    "{{ raise_exception() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends messages %}",
    "{{ strftime_now('%Y' * 10**6) }}",
    "{{ strftime_now('\ud800') }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ messages|map('list')|list|pprint }}",
    "{{ [1] * 10**8 }}",
    "{% set x = namespace(y=[]) %}{% set x.y = x %}{{ x|tojson }}",
    "{{ messages.append(1) }}",
    "{% generation %}a{% endgeneration %}",
    "{% break %}",
    "{% raw %}{{ x }}{% endraw %}",
    "{{ '\\ud800' }}",
    "{{ '</s>' }}",
    "{{ bos_token }}",
    "{{ x.y.z }}",
    "{{ 1/0 }}",
    "{% if %}",
    "{{",
    "(" * 1000,
    "{{ " + "(" * 1000 + "1" + ")" * 1000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ '" + "a" * 2**20 + "' }}",
    *HURTFUL_TEXTS,
]
TEMPLATES = st.lists(st.sampled_from(SNIPPETS) | TEXTS, min_size=1, max_size=3)


@cases(10, 400)
def test_chat_templates(tmp_path, examples):
    chats = [[{"role": "user", "content": "a <|x|> b"}]]

    def check_case(case):
        source = "".join(case)

        def render():
            template = chat_template.ChatTemplate(source, "chat_template.jinja")
            texts = template.render(
                chats, add_generation_prompt=True, names={"bos_token": "<s>"}
            )
            assert not any("root:" in text or "<class" in text for text in texts)

        survives(render, tmp_path)

    search(TEMPLATES, check_case, examples=examples)


# --- Weights --------------------------------------------------------------------------

WRITTEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "layer_types": ["full_attention", "full_attention"],
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


def params_of(shapes):
    """Parameters without a compilation."""
    return jax.device_put(
        jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory, mesh):
    """A folder with a checkpoint of Qwen2's kind, of some ten kilobytes."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    config = parse_config(WRITTEN)
    hf_weights.save_params(folder, params_of(param_shapes(config)), config)
    return folder


@cases(30, 900)
def test_config_jsons(folders, examples):
    def check_case(case):
        changes, edits = case
        folder = folders()
        content = edited(json_bytes(edited_json(WRITTEN, changes)), edits)
        (folder / "config.json").write_bytes(content)
        survives(lambda: hf_config.read_config(folder), folder)

    search(st.tuples(CHANGES, st.just([]) | EDITS), check_case, examples=examples)


def with_header(data: bytes, change, length=None) -> bytes:
    """A safetensors file with another header; `length`: what it says of that."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json_bytes(change(json.loads(data[8 : 8 + size])))
    written = len(header) if length is None else length
    return struct.pack("<Q", written % 2**64) + header + data[8 + size :]


@cases(15, 800)
def test_safetensors(folders, weights, mesh, examples):
    whole = (weights / "model.safetensors").read_bytes()
    config = parse_config(WRITTEN)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    lengths = st.none() | st.integers() | st.integers(0, 2 * header)

    def check_case(case):
        changes, length, edits = case
        folder = folders()
        content = whole
        if changes:
            content = with_header(whole, lambda h: edited_json(h, changes), length)
        content = edited(content, edits, near=header)
        shutil.copyfile(weights / "config.json", folder / "config.json")
        (folder / "model.safetensors").write_bytes(content)
        survives(lambda: hf_weights.load_params(folder, config, mesh), folder)

    search(
        st.tuples(CHANGES | st.just([]), lengths, EDITS | st.just([])),
        check_case,
        examples=examples,
    )


INDEX = {"metadata": {"total_size": 9}, "weight_map": {}}


@cases(8, 200)
def test_an_index_of_safetensors(folders, weights, mesh, examples):
    config = parse_config(WRITTEN)
    whole = (weights / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    names = [x for x in json.loads(whole[8 : 8 + size]) if x != "__metadata__"]
    index = INDEX | {"weight_map": dict.fromkeys(names, "a.safetensors")}

    def check_case(case):
        changes, edits = case
        folder = folders()
        shutil.copyfile(weights / "config.json", folder / "config.json")
        (folder / "a.safetensors").write_bytes(whole)
        content = edited(json_bytes(edited_json(index, changes)), edits)
        (folder / "model.safetensors.index.json").write_bytes(content)
        survives(lambda: hf_weights.load_params(folder, config, mesh), folder)

    search(st.tuples(CHANGES, st.just([]) | EDITS), check_case, examples=examples)


@cases(4, 300)
def test_adapters_of_peft(folders, tmp_path, mesh, examples):
    """Their adapter_config.json, and their safetensors."""
    config = dataclasses.replace(parse_config(WRITTEN), lora=Lora(2, 4.0, ("q", "v")))
    learned = params_of(lora.split(param_shapes(config))[1])
    peft.save(tmp_path / "whole", learned, config, base_name="base", base=None)
    about = json.loads((tmp_path / "whole" / peft.CONFIG).read_text())
    whole = (tmp_path / "whole" / peft.WEIGHTS).read_bytes()

    def read(folder):
        peft.check_fits(folder, config)
        peft.load(folder, config, mesh)

    assert survives(lambda: read(tmp_path / "whole"), tmp_path) == (None, None)

    def check_case(case):
        changes, of_weights, edits = case
        folder = folders()
        changed = edited_json(about, changes)
        (folder / peft.CONFIG).write_bytes(edited(json_bytes(changed), edits))
        weights = with_header(whole, lambda h: edited_json(h, of_weights))
        (folder / peft.WEIGHTS).write_bytes(weights)
        survives(lambda: read(folder), folder)

    search(
        st.tuples(CHANGES, CHANGES | st.just([]), EDITS | st.just([])),
        check_case,
        examples=examples,
    )


# --- GGUF -----------------------------------------------------------------------------

QWEN2_LAYER = {
    "attn_norm.weight": (16,),
    "ffn_norm.weight": (16,),
    "attn_q.weight": (16, 16),
    "attn_q.bias": (16,),
    "attn_k.weight": (8, 16),
    "attn_k.bias": (8,),
    "attn_v.weight": (8, 16),
    "attn_v.bias": (8,),
    "attn_output.weight": (16, 16),
    "ffn_gate.weight": (32, 16),
    "ffn_up.weight": (32, 16),
    "ffn_down.weight": (16, 32),
}
TENSORS = {"token_embd.weight": (9, 16), "output_norm.weight": (16,)}
TENSORS |= {f"blk.0.{name}": shape for name, shape in QWEN2_LAYER.items()}
METADATA = {
    "qwen2.block_count": 1,
    "qwen2.context_length": 64,
    "qwen2.embedding_length": 16,
    "qwen2.feed_forward_length": 32,
    "qwen2.attention.head_count": 2,
    "qwen2.attention.head_count_kv": 1,
    "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen2.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": [*"abcdefg", "ab", "<|end|>"],
    "tokenizer.ggml.token_type": [1] * 8 + [3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.scores": [0.5] * 9,
    "tokenizer.ggml.eos_token_id": 8,
    "tokenizer.ggml.bos_token_id": 8,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "qwen2.rope.scaling.type": "linear",
    "qwen2.rope.scaling.factor": 2.0,
    "split.tensors.count": len(TENSORS),
}


def write_gguf(path, metadata, architecture: str = "qwen2") -> None:
    writer = gguf.GGUFWriter(path, architecture)
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        for name, shape in TENSORS.items():
            writer.add_tensor(name, np.full(shape, 0.5, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add(writer, key: str, value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        add = writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64
        add(key, max(-(2**63), min(value, 2**63 - 1)))
    elif isinstance(value, float):
        writer.add_float64(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list) and value:
        # Of one kind, as the library asks.
        writer.add_array(key, [x for x in value if type(x) is type(value[0])])


def convert(path, out):
    out.mkdir()
    with gguf_files.model_files([path], out) as files:
        gguf_checkpoint.convert(gguf_files.GgufModel(files), out, "float32")


@cases(15, 700)
def test_gguf_bytes(folders, tmp_path, examples):
    write_gguf(tmp_path / "whole.gguf", METADATA)
    whole = (tmp_path / "whole.gguf").read_bytes()
    assert survives(
        lambda: convert(tmp_path / "whole.gguf", tmp_path / "out"), tmp_path
    ) == (None, None)

    def check_case(edits):
        folder = folders()
        (folder / "a.gguf").write_bytes(edited(whole, edits, near=2_200))
        survives(lambda: convert(folder / "a.gguf", folder / "out"), folder)

    search(EDITS, check_case, examples=examples)


def _writable(value) -> bool:
    """Whether the library `gguf` writes it: UTF-8, numbers of 64 bits."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, list):
        return all(not isinstance(x, (dict, list)) and x is not None for x in value)
    return True


@cases(15, 500)
def test_gguf_metadata(folders, examples):
    changes = st.tuples(
        st.sampled_from([*METADATA, "general.architecture"]),
        VALUES | st.lists(TEXTS) | st.lists(st.integers(-1, 2**31)),
    )

    def check_case(case):
        folder = folders()
        metadata, architecture = dict(METADATA), "qwen2"
        for name, value in case:
            if name == "general.architecture":
                architecture = str(value) if _writable(str(value)) else "qwen2"
                continue
            metadata[name] = value
        for name, value in metadata.items():
            flat = value if isinstance(value, list) else [value]
            if not all(map(_writable, flat)) or isinstance(value, dict):
                metadata[name] = None
        try:
            write_gguf(folder / "a.gguf", metadata, architecture)
        except Exception:  # the library's own writer refuses it
            return
        survives(lambda: convert(folder / "a.gguf", folder / "out"), folder)

    search(st.lists(changes, min_size=1, max_size=3), check_case, examples=examples)


# --- Workdirs -------------------------------------------------------------------------


def state_of(step):
    """The parameters of a very small model, and an optimiser's moment."""
    return {
        "train": {
            "params": {"embed": jnp.arange(64.0).reshape(8, 8) * step},
            "half": jnp.full((3, 5), step, jnp.bfloat16),
        },
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run with two checkpoints, metrics, evaluations and a dump."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = configure("train.jsonl").to_dict()
    config = json.loads(json.dumps(config, default=str))
    workdir.claim(folder, {"config": config, "version": "0.3", "content": {"x": "y"}})
    with checkpoint.Checkpointer(folder, keep=2) as saver:
        for step in (2, 4):
            saver.save(step, state_of(step), {"note": "meta"})
    rows = [
        {"id": f"train/{i}", "sample": j, "prompt": f"{i}+1=", "response": "2\x1b[2J"}
        | {"reward": j, "correct": j, "valid": True, "truncated": False, "length": 3}
        for i in range(3)
        for j in range(2)
    ]
    with metrics.Metrics(folder) as log:
        dump = rollout_dump.Dump(folder)
        for step in range(1, 5):
            numbers = {"reward": 0.5, "pass_rate": 0.5, "epoch": step / 2}
            log.step(step, numbers | {"rollouts": len(rows), "kl": 0.0})
            log.evaluation(step, {"accuracy": 0.5, "accuracy_level_1": 0.5})
            dump.add(step, [row | {"epoch": (step - 1) // 2} for row in rows])
        dump.close()
    workdir.write_result(folder, {"seconds": 1.0, "accuracy": 0.5})
    workdir.release(folder)
    return folder


SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(0))
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["edit", "edit", "edit", "remove", "swap", "folder", "empty"]),
        st.integers(0, 2**16),
        st.integers(0, 2**16),
        EDITS,
    ),
    min_size=1,
    max_size=3,
)


def damage(folder, faults) -> None:
    """Edits, removes, swaps or replaces files somewhere in the folder."""
    for kind, a, b, edits in faults:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            return
        path, other = files[a % len(files)], files[b % len(files)]
        content = path.read_bytes()
        if kind == "edit":
            path.write_bytes(edited(content, edits))
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "swap":
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()


@cases(8, 400)
def test_checkpoints(folders, run, examples):
    """As a run goes on from them, and as a tool reads them."""

    def check_case(faults):
        folder = folders()
        copy = shutil.copytree(run, folder / "run")
        damage(copy / "checkpoints", faults)

        def go_on():
            with checkpoint.Checkpointer(copy, keep=2) as saver:
                restored = saver.restore_newest(SHAPES, say=lambda line: None)
            return restored

        restored, _ = survives(go_on, folder)
        if restored is not None:  # then it is what was saved, to the last bit
            expected = state_of(restored.step)
            jax.tree.map(np.testing.assert_array_equal, restored.state, expected)

        def look():
            step = trained_policy.latest_step(copy)
            with checkpoint.Checkpointer(copy, read_only=True) as saver:
                return saver.restore(step, {"step": SHAPES["step"]}, partial=True)

        survives(look, folder)

    search(DAMAGE, check_case, examples=examples)


def go_on(folder):
    with metrics.Metrics(folder, step=2) as log:
        log.step(3, {"reward": 0.5})
    dump = rollout_dump.Dump(folder, step=2)
    dump.add(3, [ROLLOUT])
    dump.close()


REPORT = runpy.run_path(str(ROOT / "launch/report.py"))["main"]
OF_A_RUN = ("run.json", "result.json", "metrics.jsonl", "evals.jsonl")


@cases(3, 150)
def test_what_a_run_has_left_for_people(folders, run, examples):
    """Read by launch/report.py, by launch/lim.py and by an evaluation."""

    def check_case(case):
        faults, name, changes = case
        folder = folders()
        copy = shutil.copytree(run, folder / "run")
        shutil.rmtree(copy / "checkpoints")
        if changes:
            path = copy / name
            rows = (
                [json.loads(line) for line in path.read_text().splitlines()]
                if (name.endswith("l"))
                else [json.loads(path.read_text())]
            )
            path.write_bytes(jsonl(edited_json(rows, changes)) + b"\n")
        else:
            damage(copy, faults)
        out = str(folder / "out")
        survives(lambda: REPORT([str(copy), "--out", f"{out}.html"]), folder)
        survives(lambda: LIM(["score", "--run", str(copy), "--out", out]), folder)
        survives(lambda: trained_policy.read_config(copy), folder)
        # As the run that goes on from step 2 cuts its logs back.
        survives(lambda: go_on(copy), folder)

    search(
        st.tuples(DAMAGE, st.sampled_from(OF_A_RUN), CHANGES | st.just([])),
        check_case,
        examples=examples,
    )


ROLLOUT = {"step": 1, "id": "a", "sample": 0, "prompt": "1+1=", "response": "2"}
ROLLOUT |= {"reward": 1.0, "correct": 1, "valid": True, "epoch": 0, "length": 2}


@cases(3, 120)
def test_dumps_of_rollouts(folders, run, examples):
    def check_case(case):
        changes, edits = case
        folder = folders()
        copy = shutil.copytree(run, folder / "run")
        shutil.rmtree(copy / "checkpoints")
        rows = edited_json([ROLLOUT | {"step": 1 + i // 6} for i in range(24)], changes)
        path = next((copy / "rollouts").iterdir())
        path.write_bytes(edited(gzip.compress(jsonl(rows) + b"\n"), edits))
        out = str(folder / "out")
        survives(lambda: REPORT([str(copy), "--out", f"{out}.html"]), folder)
        survives(lambda: LIM(["score", "--run", str(copy), "--out", out]), folder)

    search(
        st.tuples(CHANGES | st.just([]), EDITS | st.just([])),
        check_case,
        examples=examples,
    )


# --- Rewards of a user's own ----------------------------------------------------------

RETURNED = st.one_of(
    VALUES.map(repr),
    VALUES.map(lambda x: f"[{x!r}] * 2"),
    st.sampled_from(
        [
            "(x for x in [1, 2])",
            "np.array([1, 2])",
            "np.array([[1], [2]])",
            "np.array([1, 2j])",
            "np.array(['a', 'b'], object)",
            "E()",
            "[E(), E()]",
            "prompts.clear()",
            "completions",
            "1/0",
            "exit()",
            "exit('\\x1b[2J' * 9)",
            "(_ for _ in ()).throw(BaseException)",
            "recurse()",
            "map(float, [1, 2])",
        ]
    ),
)
REWARD = """
import numpy as np
nan = inf = 1e999
class E:
    def __repr__(self): raise ValueError({text!r})
    __str__ = __len__ = __float__ = __repr__
def recurse(): return recurse()
def reward(prompts, completions, answer, **columns):
    return {returned}
"""


@cases(20, 350)
def test_rewards_of_a_users_own(folders, monkeypatch, examples):
    numbers = itertools.count()
    texts = TEXTS.filter(lambda text: "\0" not in text)

    def check_case(case):
        text, returned, edits = case
        folder = folders()
        name = f"fuzzed_reward_{next(numbers)}"
        content = REWARD.format(text=text, returned=returned)
        content = content.encode("utf-8", "surrogatepass")
        (folder / f"{name}.py").write_bytes(edited(content, edits))

        def grade():
            function = user_reward.load(f"{name}.reward")
            user_reward.check(name, function, ["level"], "train.jsonl")
            return user_reward.call(
                name,
                function,
                prompts=["1+1=", text],
                responses=[text, "2"],
                columns={"answer": ["2", text], "level": [1, None]},
            )

        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            values, _ = survives(grade, folder)
        sys.modules.pop(name, None)
        if values is not None:
            assert values.shape == (2,) and not np.isinf(values).any()

    search(
        st.tuples(texts, RETURNED, st.just([]) | EDITS), check_case, examples=examples
    )


# --- As a user starts them ------------------------------------------------------------


@pytest.mark.soak
def test_through_the_launchers(folders, run, weights):
    """Processes of their own: what is on stderr is the line, and the code is 2."""
    numbers = itertools.count()

    def check_case(case):
        kind, changes, edits, faults = case
        folder = folders()
        if kind == "report":
            copy = shutil.copytree(run, folder / "run")
            damage(copy, faults)
            argv = ["launch/report.py", copy, "--out", folder / "out.html"]
        elif kind == "lim":
            (folder / "a.jsonl").write_bytes(edited(jsonl(CURVES), edits))
            argv = ["launch/lim.py", "score", "--rewards", folder / "a.jsonl"]
            argv += ["--out", folder / "out.jsonl"]
        elif kind == "gguf":
            write_gguf(folder / "whole.gguf", METADATA)
            whole = (folder / "whole.gguf").read_bytes()
            (folder / "a.gguf").write_bytes(edited(whole, edits, near=2_200))
            argv = ["launch/gguf.py", folder / "a.gguf", "--out", folder / "out"]
        elif kind == "grade":
            rows = [{"prediction": "\\frac12", "reference": ".5", "expected": True}]
            rows += [{"response": "\\boxed{2}", "answer": "2"}]
            content = edited(jsonl(edited_json(rows, changes)), edits)
            (folder / "a.jsonl").write_bytes(content)
            argv = ["launch/grade.py", folder / "a.jsonl", "--workers", "1"]
            argv += ["--out", folder / "out.jsonl"]
        elif kind == "data":
            (folder / "a.jsonl").write_bytes(
                edited(jsonl(edited_json(ROWS, changes)), edits)
            )
            argv = ["launch/tpu.py", "--config", "configs/tiny.py", "--dry_run"]
            argv += ["--workdir", folder / "run"]
            argv += ["--config.data.train", folder / "a.jsonl"]
        else:
            copy = shutil.copytree(run, folder / "run")
            damage(copy, faults)
            argv = ["launch/export.py", "--workdir", copy, "--out", folder / "out"]
        before = set(folder.rglob("*"))
        next(numbers)
        ended = subprocess.run(
            [sys.executable, *map(str, argv)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            timeout=300,
        )
        errors = ended.stderr.decode()
        lines = [x for x in errors.splitlines() if not x.startswith("warning: ")]
        assert ended.returncode in (0, 2), errors
        if ended.returncode == 2:
            (line,) = lines
            assert line.startswith("error: ") and len(line) < 2_100
            assert line.isprintable(), ascii(line)
            made = set(folder.rglob("*")) - before
            assert not [x for x in made if x.name != ".lock"], made
        else:
            assert not lines, errors

    search(
        st.tuples(
            st.sampled_from(["report", "lim", "gguf", "grade", "data", "export"]),
            CHANGES,
            EDITS,
            DAMAGE,
        ),
        check_case,
        examples=60,
    )
