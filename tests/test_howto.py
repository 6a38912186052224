"""The how-tos of the rooms' READMEs, done as they say on a copy of the tree.

Of a section `## How to …`: a block of Python or JSON is a new file, named by its first
line; a block `diff` edits the files after `@@`, hunks parted by blank lines, in each of
which what stands without a plus is found once. A command's --config.… is the run's.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from tiny_run import FIELDS, MODEL, ROOT

HOW_TOS = {
    "reward": "rewards",
    "prompt sampler": "samplers",
    "advantage": "algorithms",
    "loss": "learner",
    "data set": "data",
    "model family": "models",
}
COPIED = ("limr_jax", "configs", "launch")
# As tests compile (conftest.py), and at level 0.
LAUNCH = """
import sys
import jax
from limr_jax import jit
jax.config.update("jax_disable_most_optimizations", True)
jit.CPU["xla_backend_optimization_level"] = 0
sys.path.insert(0, "launch")
import tpu
tpu.main(sys.argv[1:])
"""


# What each of the six computes, after the run's parts have been put together.
CHECKS = """
import jax.numpy as jnp
import brevity, limr_jax
from limr_jax.learner import losses
from limr_jax.learner.batch import PackedBatch
from limr_jax.models.hf_config import describe_config, parse_config

texts = ["#### 23", "4\\n#### 23", "2"]
rewards = brevity.right_and_short(["", "", ""], texts, ["23"] * 3)
assert rewards[0] > rewards[1] > 1 and rewards[2] == 0

sampler = limr_jax.prompt_sampler("oldest", problems=5, prompts=2, noise=0.5)
state, drawn = sampler.init(), []
for step in range(5):
    state, ids_P = sampler.sample(state, jax.random.key(step))
    drawn += ids_P.tolist()
assert sorted(drawn[:5]) == [0, 1, 2, 3, 4]
assert sampler.report(state, ids_P)["epoch"] == 2

signs = limr_jax.advantage("sign", [[1.0, 0.0, 0.0, 0.0], [1.0] * 4], size=2.0)
assert signs.tolist() == [[2, -2, -2, -2], [0, 0, 0, 0]]

logprob_RY = jnp.log(jnp.array([[0.5, 0.25, 0.125]]))
batch = PackedBatch(
    None, None, jnp.array([[True, True, False]]), None,
    advantage_RY=jnp.array([[1.0, -2.0, 5.0]]), old_logprob_RY=logprob_RY,
)
def slope(name):
    clip = {"low": 0.2, "high": 0.2, "dual": 0.0}
    bounds = {f"clip_{x}": clip[x] for x in losses.LOSSES[name].bounds}
    of = lambda x_RY: losses.LOSSES[name].per_token(x_RY, batch, **bounds)[0].sum()
    return jax.grad(of)(logprob_RY).tolist()
assert slope("plain") == slope("clip") == [[-1, 2, 0]]

def family(name, **more):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"vocab_size": 40, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"max_position_embeddings": 64, "rms_norm_eps": 1e-6}
    return parse_config({"model_type": name, **sizes, **more})
windowed = family("mistral", sliding_window=8)
assert windowed.pattern == ("sliding",) and windowed.window == 8
assert describe_config(windowed)["architectures"] == ["MistralForCausalLM"]
assert family("mistral", sliding_window=None) == family("llama")
print("all six")
"""


@dataclasses.dataclass(frozen=True)
class HowTo:
    """A section: the new files, the edits (file, hunk), and fields of commands."""

    files: dict[str, str]
    edits: list[tuple[str, list[str]]]
    fields: dict[str, str]

    @property
    def lines(self) -> int:
        """Lines of code to write."""
        new = sum(len(text.splitlines()) for text in self.files.values())
        return new + sum(line[:1] in "+-" for _, hunk in self.edits for line in hunk)


def read(what: str) -> HowTo:
    page = (ROOT / "limr_jax" / HOW_TOS[what] / "README.md").read_text("utf-8")
    (section,) = re.findall(
        rf"(?ms)^## How to add an? {what}$(.*?)^## ", page + "\n## "
    )
    files, edits = {}, []
    for kind, block in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", section):
        if kind != "diff":
            first, _, rest = block.partition("\n")
            name = re.fullmatch(r"(?:#|//) (\S+)", first)[1]
            files[name] = rest
            continue
        file = None
        for hunk in re.split(r"\n\n+|(?<=\.py)\n", block.rstrip("\n")):
            if hunk.startswith("@@ "):
                file = hunk.removeprefix("@@ ")
            else:
                edits.append((file, hunk.split("\n")))
    words = re.findall(r"^ {4}.*$", section, re.M)
    pairs = re.findall(r"--config\.([\w.]+)=(\S+)", " ".join(words))
    return HowTo(files, edits, dict(pairs))


def apply(how: HowTo, root: pathlib.Path) -> None:
    for name, text in how.files.items():
        path = root / name
        assert not path.exists(), f"{name} is there already"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name, hunk in how.edits:
        text = (root / name).read_text("utf-8")
        old, new = (
            "".join(line[1:] + "\n" for line in hunk if line[0] in kept)
            for kept in (" -", " +")
        )
        assert {line[0] for line in hunk} <= {*" +-"} and old, hunk
        assert text.count(old) == 1, f"{name} has {text.count(old)} of:\n{old}"
        (root / name).write_text(text.replace(old, new))


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
    """A copy of the tree without its documents."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name,
            tmp_path / "tree" / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.md"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "tree")
    return tmp_path / "tree"


def python(tree: pathlib.Path, *words) -> str:
    settings = {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=tree,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def command(tree: pathlib.Path, fields: dict) -> list[str]:
    """The arguments of launch/tpu.py for two steps of a tiny run with these fields."""
    tiny = FIELDS | {
        "model.layers": 1,
        "grader.workers": 1,
        "num_steps": 2,
        "prompts_per_step": 2,
        "rollout.compactions": 0,
        "mesh.data": 1,
    }
    overrides = [f"--config.{name}={x}" for name, x in (tiny | fields).items()]
    return ["--config", "configs/base.py", "--workdir", "run", *overrides]


@pytest.fixture
def all_six(copy) -> tuple[pathlib.Path, list[str]]:
    """The copy with all six done, and the command of a run that has all of them."""
    fields = {}
    for what in HOW_TOS:
        how = read(what)
        assert how.fields or what == "model family"
        assert 0 < how.lines < 30, (what, how.lines)
        apply(how, copy)
        fields |= how.fields
    # The same rows under the name of the public set.
    shutil.copy(copy / fields["data.train"], copy / "shop.jsonl")
    places = {"data.manual_dir": copy, "data.cache_dir": copy / "cache"}
    fields |= {"data.train": "shop:train", "model.architecture": "mistral", **places}
    return copy, command(copy, fields)


@pytest.mark.slow
def test_each_does_what_its_readme_says(all_six):
    tree, words = all_six
    python(tree, "-m", "ruff", "check", "--no-cache", ".")
    said = python(tree, "-c", LAUNCH + CHECKS, *words, "--dry_run")
    assert "algorithm: sign\n" in said and "architecture: mistral\n" in said
    assert "loss: plain, normalised as rollout" in said
    assert "2 of shop:train" in said and said.endswith("all six\n")


@pytest.mark.soak
def test_all_six_at_once_make_a_run(all_six):
    tree, words = all_six
    python(tree, "-c", LAUNCH, *words)
    lines = (tree / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    kept = json.loads((tree / "run/run.json").read_text())["config"]
    assert kept["algorithm"] == "sign" and kept["sign"] == {"size": 0.5}
    assert kept["loss"] == "plain" and kept["sampler"]["oldest"] == {"noise": 2.0}
    assert kept["reward"] == "brevity.right_and_short"
    assert kept["model"]["architecture"] == "mistral"


@pytest.mark.soak
@pytest.mark.parametrize("what", HOW_TOS)
def test_each_alone_makes_a_run(what, copy):
    """Of the project's own model, so that some responses are right."""
    how = read(what)
    apply(how, copy)
    fields = {"data.train": "arithmetic:train[:16]", "prompts_per_step": 8}
    fields |= {"model.init": ROOT / "limr_jax/assets/arithmetic", "group_size": 4}
    fields |= {f"model.{name}": 0 for name in (*MODEL, "layers")}
    fields |= {"rollout.max_prompt_length": 32, "rollout.max_response_length": 64}
    fields |= {"data.cache_dir": copy / "cache"} | how.fields
    if what == "model family":
        fields |= {f"model.{name}": size for name, size in MODEL.items()}
        fields |= {"model.init": "random", "model.architecture": "mistral"}
    python(copy, "-c", LAUNCH, *command(copy, fields))
    rows = (copy / "run/metrics.jsonl").read_text().splitlines()
    first, last = map(json.loads, rows)
    assert last["step"] == 2
    if what not in ("model family", "data set"):  # of these no response is right
        assert first["gradient_norm"] > 0
