"""Command lines that work, and one clear line for each that does not."""

import json
import pathlib
import subprocess
import sys

import pytest

from limr_jax.config import config_file
from limr_jax.config import load as config_lib
from limr_jax.config.config_file import refuse_absent
from limr_jax.config.diff import config_digest, differences
from limr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
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


def test_the_packages_own_configs_are_found_from_any_folder(repo, monkeypatch):
    """Unless the current folder has one of that name; --config=NAME.py is none."""
    monkeypatch.chdir(repo / "configs")
    config, options = config_lib.load(["--config", "configs/v4_32.py:kl=0"])
    assert config.kl.coefficient == 0 and options.workdir == "runs/v4_32-kl=0"
    for absent in ("tiny.py", "configs/absent.py", "launch/tpu.py"):
        with pytest.raises(InputError) as error:
            config_lib.load(["--config", absent])
        said = f"--config={absent}: no file {absent}; give a Python config file"
        assert str(error.value) == said
    monkeypatch.chdir(repo)
    config, _ = config_lib.load(["--config", "configs/base.py"])
    assert config.to_dict() == load(repo)[0].to_dict()


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


ALL = (
    "algorithm, bare, debug, eval, names, rate, rollout.slots, rollout.temperature, "
    "sampler.lim.floor, sampler.lim.warmup_epochs, sampler.name, seed, shards, stop, "
    "top"
)
ENTRIES = "must be a list such as 1,2 of entries like the default's (default (1, 2))"


@pytest.mark.parametrize(
    "override, said",
    [
        ("sed=1", "no field 'sed'; the nearest is seed"),
        (
            "temperature=1",
            "no field 'temperature'; the nearest is rollout.temperature",
        ),
        (
            "rollout.temprature=1",
            "no field 'rollout.temprature'; the nearest is rollout.temperature",
        ),
        ("lim.floor=1", "no field 'lim.floor'; the nearest is sampler.lim.floor"),
        ("flor=1", "no field 'flor'; the nearest is sampler.lim.floor"),
        ("seed.x=1", "no field 'seed.x'; the nearest is seed"),
        ("qqqqq=1", f"no field 'qqqqq'; the fields are {ALL}"),
        ("sampler=1", "sampler is a section; set one of sampler.lim, sampler.name"),
        ("seed=1.5", "must be a whole number (default 0)"),
        ("seed=", "must be a whole number (default 0)"),
        ("seed=True", "must be a whole number (default 0)"),
        ("rate=fast", "must be a number (default 0.1)"),
        ("rate=nan", "must be a number (default 0.1)"),
        ("debug=maybe", "must be true or false (default False)"),
        ("debug=2", "must be true or false (default False)"),
        ("stop=a,b", ENTRIES),
        ("stop=(1,x", ENTRIES),
        ("stop=1.5", ENTRIES),
        ("stop=__import__('os')", ENTRIES),
        ("top=x", "must be a whole number (default None)"),
    ],
)
def test_a_wrong_override_is_one_line(repo, override, said):
    with pytest.raises(InputError) as error:
        load(repo, f"--config.{override}")
    assert str(error.value) == f"--config.{override}: {said}"


@pytest.mark.parametrize(
    "content, said",
    [
        ("x = 1", "it has no function get_config(); see configs/base.py"),
        (
            "def get_config(:",
            "line 1: SyntaxError: invalid syntax (wrong.py, line 1)",
        ),
        ("\n\ndef get_config():\n  return {}[3]", "line 4: KeyError: 3"),
        ("def get_config(): return {}", "get_config returned dict, not ConfigDict"),
        ("def get_config(): yield 1", "get_config returned generator, not ConfigDict"),
        ("get_config = 3", "it has no function get_config(); see configs/base.py"),
        (
            "def get_config(arg): return arg",
            "its get_config takes an argument: --config=FILE:ARG",
        ),
        (
            "import nowhere_at_all",
            "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("import sys\ndef get_config():\n  sys.exit()", "line 3: SystemExit"),
        ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
        ("def get_config():\n  assert 1 > 2", "line 2: AssertionError"),
        ("raise BaseException('no\\nway')", "line 1: BaseException: no way"),
        (
            "from configs.base import get_config\nREMEDIES = 3",
            "REMEDIES must be a dict of texts, field → remedy",
        ),
        (
            "from configs.base import get_config\nREMEDIES = {'eval': None}",
            "REMEDIES must be a dict of texts, field → remedy",
        ),
        (
            "from ml_collections import ConfigDict, config_dict\n"
            "def get_config():\n"
            "  return ConfigDict({'a': config_dict.required_placeholder(int)})",
            "RequiredValueError: None value found in required reference",
        ),
        (
            "from configs import base\ndef get_config():\n"
            "  config = base.get_config()\n  config.seed = 'x'\n",
            "line 4: TypeError: Could not override field 'seed' (reference). x is of "
            "original type <class 'str'> and cannot be casted to type <class 'int'>",
        ),
    ],
)
def test_a_wrong_config_file_is_one_line(repo, content, said):
    file = repo / "configs" / "wrong.py"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        load(repo, file="wrong.py")
    assert str(error.value) == f"--config={file}: {said}".replace("FILE", str(file))


REMEDIED = """
from ml_collections import ConfigDict

REMEDIES = {
    "data.eval": "python launch/data.py makes it",
    "init": "python launch/sft.py makes it",
}

def get_config():
    return ConfigDict(dict(data=dict(eval="set[1].jsonl[:2]"), init="warm/model"))
"""


@pytest.fixture
def absent(tmp_path, monkeypatch):
    """(overrides, fields=None) → what is refused of a config with remedies, or ""."""
    (tmp_path / "mine.py").write_text(REMEDIED)
    monkeypatch.chdir(tmp_path)

    def refused(*overrides, **kwargs):
        config, options = config_lib.load(["--config=mine.py", *overrides])
        try:
            refuse_absent(config, options.config, **kwargs)
        except InputError as error:
            return str(error)
        return ""

    return refused


def test_what_is_absent_is_refused_with_the_files_own_remedy(absent, tmp_path):
    said = "--config=mine.py: data.eval=set[1].jsonl[:2] is not there; python launch/"
    assert absent() == said + "data.py makes it"
    (tmp_path / "set[1].jsonl").touch()  # without its slice
    said = "--config=mine.py: init=warm/model is not there; python launch/sft.py makes"
    assert absent() == said + " it"
    (tmp_path / "warm/model").mkdir(parents=True)
    assert absent() == ""
    (tmp_path / "set[1].jsonl").rename(tmp_path / "set[1].jsonl[:2]")  # its very name
    assert absent() == ""


def test_a_remedy_is_of_the_files_own_value(absent):
    """What the user names instead is not what the remedy makes."""
    own = ("--config.data.eval=mine.jsonl", "--config.init=mine")
    assert "init=warm/model" in absent(own[0])
    assert absent(*own) == ""
    assert absent(own[1], fields=["init"]) == ""
    assert "data.eval" in absent(own[1], fields=["init", "data.eval"])


def test_a_remedy_of_a_field_that_there_is_not(absent, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(REMEDIED.replace('"init": ', '"innit": '))
    (tmp_path / "set[1].jsonl").touch()
    said = "--config=mine.py: REMEDIES: no field 'innit'; the nearest is init"
    assert absent() == said


def test_problems_are_looked_for_in_the_current_folder_alone(absent, monkeypatch):
    """A checkpoint is also looked for where the package lies."""
    monkeypatch.setattr(config_file.platform, "resolve", lambda path: ROOT)
    assert "data.eval" in absent()
    assert absent(fields=["init"]) == ""


def test_a_field_that_a_locked_config_lacks(repo):
    """ml_collections' own words, which list every field."""
    (repo / "configs" / "wrong.py").write_text(
        "from configs import base\ndef get_config():\n"
        "  config = base.get_config().lock()\n  config.sede = 1\n"
    )
    with pytest.raises(InputError) as error:
        load(repo, file="wrong.py")
    assert "\n" not in str(error.value)
    assert 'line 4: AttributeError: \'Key "sede" does not exist' in str(error.value)


def test_a_syntax_error_in_what_the_file_imports_has_the_files_own_line(repo):
    (repo / "configs" / "broken.py").write_text("\n\n\n\n(")
    file = repo / "configs" / "wrong.py"
    file.write_text("\nfrom configs import broken\n")
    with pytest.raises(InputError) as error:
        load(repo, file="wrong.py")
    assert str(error.value) == (
        f"--config={file}: line 2: SyntaxError: '(' was never closed (broken.py, line "
        "5)"
    )


FLAGS = "Flags: --config, --workdir, --dry_run"


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "--config is missing; give --config=path/to/file.py"),
        (["--config"], "--config has no value; give --config=value"),
        (
            ["--config=nowhere.py"],
            "--config=nowhere.py: no file nowhere.py; give a Python config file",
        ),
        (
            ["--config=nowhere.py:x"],
            "--config=nowhere.py:x: no file nowhere.py; give a Python config file",
        ),
        (["--config=."], "--config=.: no file .; give a Python config file"),
        (["--confg=x"], f"unknown flag --confg; did you mean --config? {FLAGS}"),
        (
            ["--prompts_per_step=4"],
            "unknown flag --prompts_per_step; or --config.prompts_per_step? " + FLAGS,
        ),
        (["stray"], "unexpected argument 'stray'; flags are --name=value"),
        (
            ["--dry_run=perhaps"],
            "--dry_run=perhaps: must be true or false (default False)",
        ),
        (
            ["--config.seed", "--dry_run"],
            "--config.seed has no value; give --config.seed=value",
        ),
        (
            ["--workdir=\udcff"],
            "argument '--workdir=\\udcff' is not UTF-8; give it as such",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, said):
    with pytest.raises(InputError) as error:
        config_lib.load(argv)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        (
            "tiny_sft",
            "base",
            "has no field alarms.drift; it is a config of configs/sft_base.py, for "
            "launch/sft.py",
        ),
        (
            "tiny",
            "sft_base",
            "has no field columns; it is a config of configs/base.py, for "
            "launch/tpu.py",
        ),
    ],
)
def test_a_config_of_the_wrong_kind_names_who_takes_it(file, kind, said):
    given = f"--config={ROOT}/configs/{file}.py"
    with pytest.raises(InputError) as caught:
        config_lib.load([given], kind=kind)
    assert str(caught.value) == f"{given} {said}"
    right = {"base": "sft_base", "sft_base": "base"}[kind]
    config_lib.load([given], kind=right)


NO_NUMBER = "must be a number, not"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("c.grop_size = 4", ": no field 'grop_size'; the nearest is group_size"),
        (
            "c.kl.coeficient = 0.5",
            ": no field 'kl.coeficient'; the nearest is kl.coefficient",
        ),
        (
            "c.optimizer.lerning_rate = 1.0",
            ": no field 'optimizer.lerning_rate'; the nearest is "
            "optimizer.learning_rate",
        ),
        (
            "c.optimiser = ConfigDict({'b1': 0.5})",
            ": no field 'optimiser.b1'; the nearest is optimizer.b1",
        ),
        (
            "c.filter.of_everything = 1",
            ": no field 'filter.of_everything'; filter has filter.groups, "
            "filter.keep_kl, filter.max_age, filter.max_rounds, filter.normaliser, "
            "filter.tau",
        ),
        ("c.zzz = None", ": no field 'zzz'; configs/base.py lists all fields"),
        (
            "c.rollout.shrinks = 1",
            ": no field 'rollout.shrinks'; the nearest is rollout.compactions",
        ),
        ("c.kll = ConfigDict()", ": no field 'kll'; the nearest is kl"),
        ("del c.answer_phrase", " has no field answer_phrase; add it, as ADD"),
        ("del c.kl['gain']", " has no field kl.gain; add it, as ADD"),
        (
            "c = ConfigDict(c.to_dict() | {'kl': 0.5})",
            ": kl is a section; set one of kl.coefficient, kl.estimator, kl.gain, "
            "kl.placement, kl.reset_every, kl.target",
        ),
        ("c.kl.coefficient = None", f": kl.coefficient=None {NO_NUMBER} NoneType"),
        (
            "c.kl.coefficient = float('nan')",
            ": kl.coefficient=nan must be from 0 to 1e+06",
        ),
        (
            "c.optimizer.learning_rate = float('inf')",
            ": optimizer.learning_rate=inf must be from 0 to 1e+38",
        ),
        (
            "c.optimizer.learning_rate = 10**400",
            ": line 5: OverflowError: int too large to convert to float",
        ),
        (
            "c.num_steps = 10**5000",
            ": num_steps=2**16609 or more must be from 1 to 2147483647",
        ),
        ("c.seed = True", ": seed=True must be a whole number, not bool"),
        ("c.seed = -1", ": seed=-1 must be from 0 to 4294967295"),
        ("c.algorithm = None", ": algorithm=None must be text, not NoneType"),
        (
            "c.kl.placement = 'Loss'",
            ": kl.placement='Loss' is unknown; did you mean 'loss'? (loss, reward)",
        ),
        (
            "c.data.train = 'a\\0b'",
            ": data.train='a\\x00b' must be UTF-8 text without a NUL character",
        ),
        (
            "c = ConfigDict(c.to_dict() | {'seed': 'x'})",
            ": seed='x' must be a whole number, not str",
        ),
        (
            "c = ConfigDict(c.to_dict() | {'seed': 1.0})",
            ": seed=1.0 must be a whole number, not float",
        ),
        (
            "c = ConfigDict(c.to_dict() | {'seed': [1] * 99})",
            ": seed=[1, 1, 1, 1, 1, 1, ...] must be a whole number, not list",
        ),
        (
            "c = ConfigDict(c.to_dict() | {'mask_truncated': 1})",
            ": mask_truncated=1 must be true or false, not int",
        ),
    ],
)
def test_what_no_config_file_may_say(tmp_path, line, said):
    """Fields that base.py lacks, or has otherwise; the same whoever makes the dict."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import base\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n  c = base.get_config()\n  {line}\n  return c\n"
    )
    with pytest.raises(InputError) as caught:
        config_lib.load([f"--config={file}"], kind="base")
    said = said.replace("ADD", "configs/base.py has it")
    assert str(caught.value) == f"--config={file}{said}"


def test_a_file_may_give_a_whole_number_where_a_number_is_meant(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs import base\nfrom ml_collections import FrozenConfigDict\n"
        "def get_config():\n  fields = base.get_config().to_dict()\n"
        "  fields['kl']['coefficient'] = 1\n  return FrozenConfigDict(fields)\n"
    )
    override = "--config.kl.target=2"
    config, _ = config_lib.load([f"--config={file}", override], kind="base")
    assert repr(config.kl.coefficient) == "1.0" and config.kl.target == 2.0


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
    assert differences(old, new) == [
        "sampler.lim.floor: 0.05 → 0.1",
        "stop: [1, 2] → [1]",
    ]
    # A run.json read back has lists for tuples, and that is no difference.
    assert differences(json.loads(json.dumps(old.to_dict())), old) == []
    assert differences({"a": None}, {"b": 1}) == [
        "a: null → absent",
        "b: absent → 1",
    ]
    assert differences({"a": 1}, {"a": True}) == ["a: 1 → true"]
    assert config_digest(old) != config_digest(new)
    assert config_digest({"a": (1,), "b": 2}) == config_digest({"b": 2, "a": [1]})


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
        (
            "gc.callbacks.append(once)\n  gc.collect()\n  time.sleep(1)",
            130,
            "error: interrupted\n",
        ),
        (
            "raise PermissionError(13, 'as Python says it', 'a/b')",
            2,
            "error: a/b: Permission denied; check path, rights and room\n",
        ),
        (
            "raise OSError(28, 'as Python says it')",  # of a file that is open
            2,
            "error: line 9 of <string>: No space left on device; check path, rights "
            "and room\n",
        ),
    ],
)
def test_run_main_ends_with_a_code_and_one_line(body, code, stderr):
    program = (
        "from limr_jax.config.load import run_main\n"
        "from limr_jax.errors import InputError\n"
        "import gc, time\n"
        "def once(*_):\n  gc.callbacks.remove(once)\n  raise KeyboardInterrupt\n"
        f"def main(argv):\n  assert argv == ['-x']\n  {body}\nrun_main(main)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, "-x"], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (code, stderr)
