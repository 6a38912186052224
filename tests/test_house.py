"""The house's rules, as far as a program can see them."""

import ast
import graphlib
import json
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import jax
import pytest
from tiny_run import FIELDS, MODEL, ROOT, configure, set_up, write_problems

import limr_jax
from limr_jax import setup, sft
from limr_jax.compilation import slices
from limr_jax.compilation.calls import plan
from limr_jax.config import config_file
from limr_jax.config import load as config_lib
from limr_jax.evaluation import benchmarks
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.learner.losses import CORRECTIONS
from limr_jax.samplers.allocation import ALLOCATIONS
from limr_jax.samplers.from_config import SAMPLERS
from limr_jax.train import train

CONFIGS = sorted(
    path for path in (ROOT / "configs").glob("*.py") if path.name != "__init__.py"
)
PROGRAMS = [*(ROOT / "limr_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PROGRAMS}


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def fields_of(file: str) -> set[str]:
    config, _ = config_lib.load(["--config", str(ROOT / "configs" / file)])
    return set(config_lib.reading(config)[1]())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_has_the_base_fields(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    config, options = config_lib.load(["--config", str(path)])
    assert config.is_locked
    assert options.workdir == f"runs/{path.stem}"
    # A field that base.py lacks would be one that nothing reads.
    assert fields_of(path.name) in (fields_of("base.py"), fields_of("sft_base.py"))


@pytest.mark.slow
def test_every_field_is_read(tmp_path, quick_compiler, monkeypatch):
    """By a run of one step, by one that is set up otherwise, or by an evaluation."""
    problems = write_problems(tmp_path / "train.jsonl", 4)
    held_out = write_problems(tmp_path / "eval.jsonl", 1, add=2)
    views = []

    def view(**fields):
        viewed, unread = config_lib.reading(configure(problems, **fields))
        views.append(unread)
        return viewed

    one_step = view(num_steps=1, data__eval=held_out)
    train(set_up(one_step), one_step, tmp_path / "run")
    judged = {"reward": "math", "judge__init": ROOT / "limr_jax/assets/arithmetic"}
    set_up(view(sampler__name="lim", **judged))
    # The defaults of these ask for more problems, or for another column.
    four_problems = {
        "curriculum": {"sampler__curriculum__minimum": 0},
        "adarft": {"sampler__adarft__column": "level"},
    }
    for name in SAMPLERS:
        fields = four_problems.get(name, {}) | {"filter__max_rounds": 1}
        set_up(view(sampler__name=name, **fields))
    for name, algorithm in ALGORITHMS.items():
        rate = 0.01 if algorithm.needs_critic else 0.0
        set_up(view(algorithm=name, critic__learning_rate=rate))
    for name in ALLOCATIONS:
        set_up(view(allocation__name=name, allocation__ada__per_round=1))
    for name in CORRECTIONS:
        set_up(view(mismatch__correction=name))
    set_up(view(filter__groups="mixed", filter__max_rounds=1))
    set_up(view(kl__coefficient=0.1, kl__target=0.1))
    set_up(view(model__lora__rank=2))
    assets = ROOT / "limr_jax/assets/arithmetic"
    set_up(view(reward="math", judge__init=assets))
    own = {f"model__{name}": 0 for name in MODEL}  # the checkpoint's dimensions
    examined = view(model__init=assets, benchmarks__names=f"{held_out}@2", **own)
    # It sets a field of a copy of its own, where a view has none.
    monkeypatch.setattr(benchmarks, "copy", types.SimpleNamespace(deepcopy=lambda x: x))
    benchmarks.set_up(examined).close()
    monkeypatch.setattr(slices, "devices", lambda _: jax.devices()[:1])
    stand_ins = {"type": "v4-8", "problems": 4, "answer_length": 2}
    plan(view(**{f"slice__{name}": value for name, value in stand_ins.items()}))
    unread = set.intersection(*(set(unread()) for unread in views))
    assert not unread


@pytest.mark.slow
def test_every_field_of_fine_tuning_is_read(tmp_path, quick_compiler):
    texts = tmp_path / "texts.jsonl"
    row = {"problem": "1+1=", "answer": "2", "solution": "1 + 1 = 2 #### 2"}
    texts.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(4)))
    fields = {"rows": 1, "columns": 64, "num_steps": 1, "data.train": texts}
    fields |= {"tokenizer": FIELDS["tokenizer"], "mesh.tensor": 1, "mesh.fsdp": 1}
    fields |= {f"model.{name}": size for name, size in MODEL.items()}
    fields |= {"model.lora.rank": 2}  # 0: the other fields of adapters say nothing
    argv = [f"--config.{name}={value}" for name, value in fields.items()]
    base = str(ROOT / "configs/sft_base.py")
    viewed, unread = config_lib.reading(config_lib.load(["--config", base, *argv])[0])
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(
            sft, "make_mesh", lambda **axes: setup.make_mesh(**axes, devices=one)
        )
        sft.train(viewed, tmp_path / "run")
    assert not unread()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_run_goes_where_its_own_files_lie(path):
    """A folder that holds others' files is no workdir, so the run would be refused."""
    config, _ = config_lib.load(["--config", str(path)])
    values = (value for _, value in config_file.leaves(config.to_dict()))
    default = f"runs/{path.stem}/"
    assert not [x for x in values if isinstance(x, str) and x.startswith(default)]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, within functions too."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FORBIDDEN = {
    "torch",
    "tensorflow",
    "pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
}


def test_no_other_framework_and_nothing_that_runs_what_it_reads():
    for path, tree in TREES.items():
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN, path
        assert path.stem not in ("util", "utils", "common", "helpers", "misc")
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {func.id for func in calls if isinstance(func, ast.Name)}
        assert not names & {"eval", "exec", "__import__"}, path


# What stands on a floor may import from its own floor and from those above it in this
# list; nothing imports upward. limr_jax/README.md has the same list, and the rooms.
FLOORS = [
    "errors prng sharding chunking jit platform console time_limit "
    "worker_process worker_pool",
    "algorithms assets",
    "config multihost storage data",
    "models",
    "rollout",
    "samplers rewards",
    "learner",
    "evaluation",
    "alarms identity programs check setup step fork first_state outputs train sft",
    "compilation studies library",
    "launch",
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def modules() -> dict[str, pathlib.Path]:
    """All modules of the package by dotted name without "limr_jax."."""
    found = {}
    for path in (ROOT / "limr_jax").rglob("*.py"):
        parts = path.relative_to(ROOT / "limr_jax").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def needs() -> dict[str, set[str]]:
    """Which modules of the package each of them imports."""
    there = modules()
    all_needs = {}
    for module, path in there.items():
        names = imports(path)
        above = {"launch", "configs", "tests"}
        assert not {name.split(".")[0] for name in names} & above, named(path)
        own = {name.removeprefix("limr_jax.") for name in names if "limr_jax" in name}
        # 'data.prompts.put_prompts' is of data.prompts.
        own = {name if name in there else name.rpartition(".")[0] for name in own}
        all_needs[module] = own & set(there) - {module, ""}
    return all_needs


def test_no_module_imports_upward():
    upward = [
        f"{module} imports {needed}"
        for module, all_needed in needs().items()
        for needed in all_needed
        if module and FLOOR[needed.split(".")[0]] > FLOOR[module.split(".")[0]]
    ]
    assert not upward
    assert needs()["learner.advantages"] >= {"algorithms.dash"}  # it does see them


def test_no_modules_need_one_another():
    list(graphlib.TopologicalSorter(needs()).static_order())  # raises for a circle


def test_no_class_is_in_two_rooms():
    """But State, which an algorithm that remembers has beside its `update`."""
    rooms: dict[str, set[str]] = {}
    for path in (ROOT / "limr_jax").rglob("*.py"):
        room = path.relative_to(ROOT / "limr_jax").parts[0]
        for node in TREES[path].body:
            if isinstance(node, ast.ClassDef) and room != "algorithms":
                rooms.setdefault(node.name, set()).add(room)
    public = {name for name in rooms if not name.startswith("_")}
    assert not {name: rooms[name] for name in public if len(rooms[name]) > 1}
    assert rooms["HostGrades"] == rooms["Graded"] == {"rewards"}  # it does see them


def test_importing_the_package_loads_no_jax():
    line = (
        "import sys, time; start = time.perf_counter(); import limr_jax; "
        "assert time.perf_counter() - start < 1; assert 'jax' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_tests_mirror_the_rooms():
    rooms = {path.name for path in (ROOT / "limr_jax").iterdir() if path.is_dir()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= rooms | {"launch"}


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(command):
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
    ended = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


FOLDERS = ("limr_jax", "configs", "launch", "tests", "notebooks")
UNDER = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
PAGES = [*ROOT.glob("*.md"), *(path for path in UNDER if path.suffix == ".md")]
MODULES = [path for path in UNDER if path.suffix in (".py", ".sh", ".ipynb")]
ROOMS = [ROOT / folder for folder in FOLDERS]
ROOMS += [
    path
    for path in sorted((ROOT / "limr_jax").iterdir())
    if path.is_dir() and path.name != "__pycache__"
]


def quoted(text: str) -> set[str]:
    """What stands in backticks, a line at a time."""
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("room", ROOMS, ids=named)
def test_a_rooms_readme_names_each_module_and_no_other(room):
    text = (room / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120  # two screens
    words = quoted(text)
    own = {path.relative_to(room) for path in MODULES if path.is_relative_to(room)}
    absent = set()
    for path in own:
        # The rooms of the package, and the tests of each, have a README above or below.
        elsewhere = named(room) in ("limr_jax", "tests") and len(path.parts) > 1
        # A public set's builder is named by its folder.
        names = {str(path), path.name, *path.parts[1:-1]}
        names |= {f"{folder}/" for folder in path.parents if len(folder.parts) > 1}
        if path.name != "__init__.py" and not elsewhere and not names & words:
            absent.add(path)
    assert not absent
    gone = {
        word
        for word in words
        if re.fullmatch(r"[\w/]+\.(py|sh|ipynb)", word)
        and not any(
            path.match(word)
            for path in (MODULES if "/" in word else map(pathlib.Path, own))
        )
    }
    assert not gone


def test_the_first_readme_is_short_and_says_what_was_not_done():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert "never run on a tpu" in "\n".join(lines[:20]).lower()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    gone = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        there = path.exists()
        if there and anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            there = anchor in map(slug, headings)
        gone += [] if there else [target]
    # Paths of this repository, in backticks and in commands: 'configs/v4_32.py:kl=0',
    # 'tests/a.py::test_b', 'limr_jax.rewards.placebo.shuffled'.
    code = quoted(text) | set(re.findall(r"^ {4}(.*)$", text, re.M))
    for word in {word for line in code for word in line.split()}:
        path = re.fullmatch(rf"((?:{'|'.join(FOLDERS)})/[\w/.*-]*)(:.*)?", word)
        if path and not list(ROOT.glob(path[1].rstrip("/."))):
            gone.append(word)
        module = re.fullmatch(r"limr_jax((\.[a-z_]+)+)", word)
        if module and module[1][1:] not in modules():
            above, _, name = module[1][1:].rpartition(".")
            there = modules().get(above)
            if not there or f"def {name}(" not in there.read_text(encoding="utf-8"):
                gone.append(word)
    assert not gone


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "limr_jax/__init__.py"}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((\S+)\)$", changes, re.M)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.search(r"^version: (\S+)\ndate-released: (\S+)$", citation, re.M)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert newest.groups() == cited.groups()
    assert newest[1] == limr_jax.__version__
    assert f"version {newest[1]}," in readme


def test_nothing_is_left_for_later():
    texts = {path: path.read_text(encoding="utf-8") for path in PROGRAMS}
    assert not [path for path, text in texts.items() if "TODO" in text]
    assert not [path for path, text in texts.items() if "FIXME" in text]


def pattern_texts(tree: ast.AST):
    """The text of each string; what is put into one as `(0)`, since it may be long."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "(0)"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_bracket_is_repeated_possessively():
    """CPython reads `(...)*+` wrongly; `(?>(...)*)` says the same and is read rightly.

    Before 3.11.5 it may match nothing for ever, as it does on Debian 12
    (python/cpython#106052); with a group within it is wrong in 3.13.0 as well. Of one
    character, as in `[a-z]++`, it is right everywhere.
    """
    # A bound may be put in, and `\\)` is a backslash and a bracket.
    possessive = re.compile(r"(?<!\\)(?:\\\\)*\)(?:[*+?]|\{(?:[\d,]|\(0\))+\})\+")
    assert possessive.search(r"(?:a|b)*+") and possessive.search(r"(ab){0,3}+")
    assert possessive.search(r"(a\\)*+") and possessive.search(r"(ab){0,(0)}+")
    assert not possessive.search(r"(?>(?:ab)*)") and not possessive.search(r"\)*+")
    found = {
        f"{named(path)}: {text}"
        for path, tree in TREES.items()
        for text in pattern_texts(tree)
        if possessive.search(text)
    }
    assert not found
