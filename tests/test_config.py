"""Command lines that work, and one clear line for each that does not."""

import json
import pathlib
import subprocess
import sys

import pytest

from limr_jax import config as config_lib
from limr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE = """
from ml_collections import ConfigDict, config_dict

def get_config():
    return ConfigDict(dict(
        seed=0, rate=0.1, algorithm="grpo", eval="", stop=(1, 2), names=("a",),
        bare=(), debug=False, top=config_dict.placeholder(int),
        sampler=dict(name="lim", lim=dict(floor=0.05, warmup_epochs=1)),
        rollout=dict(temperature=1.0, slots=8), shards=[0.5],
    ))
"""
CHILD = """
from configs import base

def get_config(arg="rate=1"):
    config = base.get_config().lock()
    name, value = arg.split("=")
    config[name] = type(config[name])(value)
    return config
"""


@pytest.fixture
def repo(tmp_path):
    """A checkout with configs/base.py and configs/child.py, which imports base."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text(BASE)
    (tmp_path / "configs" / "child.py").write_text(CHILD)
    return tmp_path


def load(repo, *overrides, file="base.py", **kwargs):
    return config_lib.load([f"--config={repo}/configs/{file}", *overrides], **kwargs)


@pytest.mark.parametrize(
    "override, field, value",
    [
        ("seed=7", "seed", 7),
        ("seed=-7", "seed", -7),
        ("rate=3", "rate", 3.0),
        ("rate=1e-6", "rate", 1e-6),
        ("rate=inf", "rate", float("inf")),
        ("algorithm=7", "algorithm", "7"),
        ("algorithm=a=b", "algorithm", "a=b"),
        ("eval=", "eval", ""),
        ("stop=3", "stop", (3,)),
        ("stop=3,4,5", "stop", (3, 4, 5)),
        ("stop=(3, 4)", "stop", (3, 4)),
        ("stop=[3,]", "stop", (3,)),
        ("stop=", "stop", ()),
        ("names=x, y", "names", ("x", "y")),
        ("names=('x', 'y')", "names", ("x", "y")),
        ("names=[x,y]", "names", ("x", "y")),
        ("bare=1,x", "bare", (1, "x")),
        ("shards=1,2.5", "shards", [1.0, 2.5]),
        ("debug=True", "debug", True),
        ("debug=no", "debug", False),
        ("top=4", "top", 4),
        ("top=none", "top", None),
        ("sampler.lim.floor=0", "sampler.lim.floor", 0.0),
    ],
)
def test_an_override_has_the_type_of_its_default(repo, override, field, value):
    config, _ = load(repo, f"--config.{override}")
    for part in field.split("."):
        config = config[part]
    assert config == value and type(config) is type(value)
    if isinstance(value, (tuple, list)):
        assert [type(entry) for entry in config] == [type(entry) for entry in value]


def test_options_and_the_order_and_form_of_flags(repo):
    config, options = config_lib.load(
        ["--config.seed", "-3", "--dry_run", "--config", f"{repo}/configs/child.py"]
        + ["--coordinator=host:1", "--process_count", "4", "--config.seed=5"],
        flags={"coordinator": "", "process_count": 0, "compile_only": False},
    )
    assert (config.seed, config.rate) == (5, 1.0) and config.is_locked
    assert options.workdir == "runs/child" and options.dry_run is True
    assert options.coordinator == "host:1" and options.process_count == 4
    assert options.compile_only is False
    _, options = load(repo, "--workdir=/x/y", "--dry_run=false")
    assert options.workdir == "/x/y" and options.dry_run is False


def test_an_argument_reaches_get_config_and_names_the_run(repo):
    config, options = load(repo, file="child.py:seed=9")
    assert config.seed == 9 and options.workdir == "runs/child-seed=9"


def test_switches_have_the_types_of_their_defaults():
    defaults = {"kl": 0.01, "critic": True, "name": "a"}
    assert config_lib.switches("", **defaults) == defaults
    given = config_lib.switches("critic=no,kl=0", **defaults)
    assert given == {"kl": 0.0, "critic": False, "name": "a"}
    for text, line in (
        ("kll=0", "argument='kll' is unknown; did you mean 'kl'"),
        ("kl", "kl=: must be a number"),
        ("kl=0,kl=0", "argument kl is there twice"),
        ("kl=0,", "argument='' is unknown"),
    ):
        with pytest.raises(InputError, match=line):
            config_lib.switches(text, **defaults)


def test_configs_come_from_the_files_own_checkout(repo, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "configs").mkdir()
    (other / "configs" / "base.py").write_text(BASE.replace("seed=0", "seed=1"))
    (other / "configs" / "child.py").write_text(CHILD)
    before = list(sys.path)
    seeds = [load(root, file="child.py")[0].seed for root in (repo, other, repo)]
    assert seeds == [0, 1, 0] and sys.path == before and "configs" not in sys.modules


def test_an_edit_within_the_same_second_counts(repo):
    for seed in (1, 2, 3):
        (repo / "configs" / "base.py").write_text(
            BASE.replace("seed=0", f"seed={seed}")
        )
        assert load(repo, file="child.py")[0].seed == seed


@pytest.mark.parametrize(
    "override, parts",
    [
        ("sed=1", ["--config.sed=1", "the nearest is seed"]),
        ("temperature=1", ["the nearest is rollout.temperature"]),
        ("rollout.temprature=1", ["the nearest is rollout.temperature"]),
        ("lim.floor=1", ["the nearest is sampler.lim.floor"]),
        ("flor=1", ["the nearest is sampler.lim.floor"]),
        ("seed.x=1", ["no field 'seed.x'"]),
        ("qqqqq=1", ["the fields are", "rollout.slots"]),
        ("sampler=lim", ["is a section", "--config.sampler.name"]),
        ("seed=1.5", ["--config.seed=1.5", "a whole number", "default 0"]),
        ("seed=", ["a whole number"]),
        ("seed=True", ["a whole number"]),
        ("rate=fast", ["--config.rate=fast", "a number", "default 0.1"]),
        ("rate=nan", ["a number"]),
        ("debug=maybe", ["true or false", "default False"]),
        ("debug=2", ["true or false"]),
        ("stop=a,b", ["a list", "default (1, 2)"]),
        ("stop=(1,x", ["a list"]),
        ("stop=1.5", ["a list"]),
        ("stop=__import__('os')", ["a list"]),
        ("top=x", ["a whole number"]),
    ],
)
def test_a_wrong_override_is_one_line(repo, override, parts):
    with pytest.raises(InputError) as error:
        load(repo, f"--config.{override}")
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


@pytest.mark.parametrize(
    "content, parts",
    [
        ("x = 1", ["no function get_config"]),
        ("def get_config(:", ["line 1: SyntaxError"]),
        ("\n\ndef get_config():\n  return {}[3]", ["line 4: KeyError: 3"]),
        ("def get_config(): return {}", ["returned dict, not ConfigDict"]),
        ("def get_config(arg): return arg", ["takes an argument", ":ARG"]),
        ("import nowhere_at_all", ["line 1: ModuleNotFoundError"]),
        (
            "from configs import base\ndef get_config():\n"
            "  config = base.get_config().lock()\n  config.sede = 1\n",
            ["line 4", "sede"],
        ),
        (
            "from configs import base\ndef get_config():\n"
            "  config = base.get_config()\n  config.seed = 'x'\n",
            ["line 4: TypeError"],
        ),
    ],
)
def test_a_wrong_config_file_is_one_line(repo, content, parts):
    (repo / "configs" / "wrong.py").write_text(content)
    with pytest.raises(InputError) as error:
        load(repo, file="wrong.py")
    text = str(error.value)
    assert "wrong.py" in text and "\n" not in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "argv, parts",
    [
        ([], ["--config is missing"]),
        (["--config"], ["--config has no value"]),
        (["--config=nowhere.py"], ["no file nowhere.py"]),
        (["--config=nowhere.py:x"], ["no file nowhere.py"]),
        (["--config=."], ["no file ."]),
        (["--confg=x"], ["unknown flag --confg", "--config?"]),
        (["--prompts_per_step=4"], ["--config.prompts_per_step?"]),
        (["stray"], ["'stray'"]),
        (["--dry_run=perhaps"], ["--dry_run=perhaps", "true or false"]),
        (["--config.seed", "--dry_run"], ["--config.seed has no value"]),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, parts):
    with pytest.raises(InputError) as error:
        config_lib.load(argv)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        ("tiny_sft", "base", "no field algorithm; it is a config of configs/"),
        ("tiny_sft", "base", "configs/sft_base.py, for launch/sft.py"),
        (
            "tiny",
            "sft_base",
            "no field columns; it is a config of configs/base.py, for",
        ),
    ],
)
def test_a_config_of_the_wrong_kind_names_who_takes_it(file, kind, said):
    given = f"--config={ROOT}/configs/{file}.py"
    with pytest.raises(InputError) as caught:
        config_lib.load([given], kind=kind)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    right = {"base": "sft_base", "sft_base": "base"}[kind]
    config_lib.load([given], kind=right)


def test_a_config_that_lacks_a_field(repo):
    with pytest.raises(
        InputError, match="no field answer_phrase; add it, as configs/base"
    ):
        load(repo, kind="base")


def test_an_argument_that_get_config_does_not_take(repo):
    with pytest.raises(InputError, match="takes no argument"):
        load(repo, file="base.py:x")
    with pytest.raises(InputError, match="unknown flag --coordinator"):
        load(repo, "--coordinator=x")


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        config_lib.load(["--help"], "Trains a policy.", flags={"coordinator": ""})
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "Trains a policy." in shown and "--coordinator" in shown


def test_differences_name_fields_and_both_values(repo):
    old, _ = load(repo)
    new, _ = load(repo, "--config.sampler.lim.floor=0.1", "--config.stop=1")
    assert config_lib.differences(old, new) == [
        "sampler.lim.floor: 0.05 → 0.1",
        "stop: [1, 2] → [1]",
    ]
    # A run.json read back has lists for tuples, and that is no difference.
    assert config_lib.differences(json.loads(json.dumps(old.to_dict())), old) == []
    assert config_lib.differences({"a": None}, {"b": 1}) == [
        "a: null → absent",
        "b: absent → 1",
    ]
    assert config_lib.differences({"a": 1}, {"a": True}) == ["a: 1 → true"]
    assert config_lib.config_digest(old) != config_lib.config_digest(new)
    assert config_lib.config_digest({"a": (1,), "b": 2}) == config_lib.config_digest(
        {"b": 2, "a": [1]}
    )


def test_reading_knows_what_was_not_read(repo):
    config, unread = config_lib.reading(load(repo)[0])
    assert "seed" in unread() and "sampler.lim.floor" in unread()
    config.to_dict()
    assert len(unread()) == 15
    assert config.seed == 0 and config["sampler"]["lim"].floor == 0.05
    assert dict(**config.rollout) == {"temperature": 1.0, "slots": 8}
    assert unread() == ["algorithm", "bare", "debug", "eval", "names", "rate"] + [
        "sampler.lim.warmup_epochs",
        "sampler.name",
        "shards",
        "stop",
        "top",
    ]
    with pytest.raises(AttributeError, match="no field rollout.slot"):
        _ = config.rollout.slot


@pytest.mark.parametrize(
    "body, code, stderr",
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise InputError('x is 3;\\n at most 2')", 2, "error: x is 3; at most 2\n"),
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
    ],
)
def test_run_main_ends_with_a_code_and_one_line(body, code, stderr):
    program = (
        "from limr_jax.config import run_main\nfrom limr_jax.errors import InputError\n"
        f"def main(argv):\n  assert argv == ['-x']\n  {body}\nrun_main(main)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "-x"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (code, stderr)
