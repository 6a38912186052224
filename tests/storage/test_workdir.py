"""A run is the content of what it reads, and no other files become a run's."""

import errno
import json
import os
import shutil

import pytest
from tiny_run import MODEL, ROOT, configure, write_problems

from limr_jax import identity
from limr_jax.data import problems as data
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.storage import lease, workdir
from limr_jax.studies import jobs

ASSETS = ROOT / "limr_jax/assets/arithmetic"


def identity_of(train, tokenizer=ASSETS, evaluation=None, **fields):
    """As run.set_up makes it, without a mesh or a program."""
    config = configure(
        train, tokenizer=tokenizer, data__eval=evaluation or "", **fields
    )
    loaded = load_tokenizer(tokenizer)

    def problems(path):
        found = data.load_problems(str(path), data_dir="")
        return data.tokenize(found, loaded, max_prompt_length=16)

    eval_set = problems(evaluation) if evaluation else None
    return identity.of_run(config, problems(train), eval_set)


@pytest.fixture
def folder(tmp_path):
    """train.jsonl, eval.jsonl, and a copy of a checkpoint with its tokenizer."""
    write_problems(tmp_path / "train.jsonl", 6)
    write_problems(tmp_path / "eval.jsonl", 3, add=2)
    (tmp_path / "scores.jsonl").write_text('{"id": "train/0", "lim_score": 1}\n')
    shutil.copytree(ASSETS, tmp_path / "model")
    return tmp_path


def of_folder(folder, **changes):
    given = {
        "tokenizer": folder / "model",
        "evaluation": folder / "eval.jsonl",
        "model__init": folder / "model",
        "judge__init": folder / "model",
        "sampler__name": "lim",
        "sampler__lim__scores": folder / "scores.jsonl",
        **{f"model__{name}": 0 for name in MODEL},
    }
    return identity_of(folder / "train.jsonl", **given | changes)


def test_what_has_moved_is_the_same_run(folder, monkeypatch):
    run = folder / "run"
    workdir.claim(run, of_folder(folder))
    workdir.write_result(run, {"steps": 6})
    moved = shutil.copytree(folder, folder.parent / "moved")
    shutil.rmtree(folder / "model")  # what it was is not looked for
    workdir.claim(run, of_folder(moved))
    # It names the new places, for whoever looks at it, and the result stands.
    config = workdir.read_run(run)["config"]
    assert config["model"]["init"] == str(moved / "model")
    assert config["data"]["train"] == str(moved / "train.jsonl")
    assert workdir.read_result(run) == {"steps": 6}
    # A relative path, and the tokenizer's file instead of its folder.
    monkeypatch.chdir(moved)
    near = of_folder(moved, model__init="model", tokenizer="model/tokenizer.model")
    workdir.claim(run, near)
    workdir.release(run)


def rewrite(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


CHANGES = {
    "data.train": lambda x: rewrite(x / "train.jsonl", b'"1+1="', b'"1+01="'),
    "data.eval": lambda x: rewrite(x / "eval.jsonl", b'"level": 1', b'"level": 2'),
    "sampler.lim.scores": lambda x: rewrite(x / "scores.jsonl", b": 1}", b": 2}"),
    "tokenizer": lambda x: rewrite(
        x / "model/tokenizer_config.json", b"{", b'{"chat_template": "{{ 1 }}", '
    ),
    "model.init": lambda x: (x / "model/model.safetensors").write_bytes(
        (x / "model/model.safetensors").read_bytes()[:-1] + b"\x77"
    ),
}


@pytest.mark.parametrize("field", CHANGES)
def test_other_content_is_refused_by_the_fields_name(folder, field):
    run = folder / "run"
    old = of_folder(folder)
    workdir.claim(run, old)
    CHANGES[field](folder)
    new = of_folder(folder)
    names = [field] + ["judge.init"] * (field == "model.init")
    differ = "; ".join(
        f'content.{name}: "{old["content"][name]}" → "{new["content"][name]}"'
        for name in sorted(names)
    )
    with pytest.raises(InputError) as raised:
        workdir.claim(run, new)
    assert str(raised.value) == (
        f"{run} holds a run that differs in {differ}: start it with what it had (only "
        "num_steps may grow), or give another --workdir"
    )
    workdir.release(run)


def test_a_run_of_0_2_is_refused_in_one_line(tmp_path):
    """Its run.json has digests of the data and of the first model, of nothing else."""
    old = {"config": {"num_steps": 3}, "data": {"train": "abc"}, "init": None}
    (tmp_path / "run.json").write_text(json.dumps(old | {"version": "0.2.0"}))
    new = {"config": {"num_steps": 3}, "content": {"data.train": "abc"}}
    with pytest.raises(InputError) as raised:
        workdir.claim(tmp_path, new | {"version": "0.2.0"})
    assert str(raised.value) == (
        f"{tmp_path} was begun by limr_jax 0.2.0, which kept no digests of what it "
        "read, so that it cannot go on (but be evaluated and exported); give another "
        "--workdir"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("value", ['{"content": [[1]]}', '{"content": 3, "config": 4}'])
def test_a_run_json_of_other_types_is_another_run(tmp_path, value):
    (tmp_path / "run.json").write_text(value)
    new = {"config": {"num_steps": 3}, "content": {"data.train": "abc"}}
    with pytest.raises(InputError, match="was begun by limr_jax None, which kept"):
        workdir.claim(tmp_path, new)
    with pytest.raises(InputError, match="holds a run that differs in "):
        workdir.claim(tmp_path, {"config": {"num_steps": 3}})


def contents(folder) -> dict:
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


FOREIGN = {
    "a model": "model/model.safetensors",
    "rollouts": "rollouts/00000001.jsonl.gz",
    "TensorBoard's": "tensorboard/events.out.tfevents.1.host",
    "numbers": "metrics.jsonl",
    "a note": "notes.txt",
    "hidden": ".git/config",
}


@pytest.mark.parametrize("name", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, name):
    folder = tmp_path / "mine"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(InputError) as raised:
        workdir.claim(folder, {"config": {}}, flag="--out")
    first = name.split("/")[0]
    assert str(raised.value) == (
        f"{folder} holds {first!r} but no run.json, so it is no run's folder; give "
        "another --out, a new or an empty one"
    )
    assert contents(folder) == before


def test_what_an_early_kill_leaves_of_ours_is_not_foreign(tmp_path):
    for name in (".lock", ".run.123.tmp.json", ".probe-host"):
        (tmp_path / name).touch()
    workdir.claim(tmp_path, {"config": {}})
    workdir.release(tmp_path)


def test_names_that_would_move_the_cursor_are_escaped(tmp_path):
    (tmp_path / "a\x1b[2J\u202eb").touch()
    with pytest.raises(InputError) as raised:
        workdir.claim(tmp_path, {"config": {}})
    assert r"holds 'a\x1b[2J\u202eb' but" in str(raised.value)


def test_places_that_are_none(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, text in (
        ("file", "is a file; give a folder"),
        ("nowhere", "cannot be made"),
        ("circle", "circle/run.json cannot be read"),
    ):
        with pytest.raises(InputError, match=text) as raised:
            workdir.claim(tmp_path / name, {"config": {}})
        assert "\n" not in str(raised.value)


def test_an_evaluation_goes_on_where_the_run_has_moved(tmp_path):
    def identity(run, digest):
        known = {"params_digest": digest, "content": {"policy.run": digest[:2]}}
        return known | {"policy": {"run": run, "step": 3}}

    workdir.claim(tmp_path / "x", identity("old/run", "abc"))
    workdir.claim(tmp_path / "x", identity("new/run", "abc"))
    assert workdir.read_run(tmp_path / "x")["policy"]["run"] == "new/run"
    with pytest.raises(InputError, match='policy.run: "ab" → "xy"; params_digest: '):
        workdir.claim(tmp_path / "x", identity("new/run", "xyz"))
    workdir.release(tmp_path / "x")


def test_a_grid_goes_on_after_its_data_have_moved(tmp_path):
    """Whether they are the same the run itself finds out: it is started again."""
    run, made = tmp_path / "run", {"num_steps": 3, "data": {"train": "a"}}
    stored = {"config": made, "content": {"data.train": "1"}}
    workdir.claim(run, stored)
    workdir.release(run)
    workdir.write_result(run, {"steps": 3})

    def job(**changes):
        return jobs.Job("one", ("x",), run, 3, made | changes)

    assert job().done()
    assert not job(data={"train": "b"}).done()
    with pytest.raises(InputError, match="differs in seed: absent → 1"):
        job(seed=1).done()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EAGAIN, "is being written by another process; wait for it or stop it"),
        (errno.EACCES, "is being written by another process; wait for it or stop it"),
        (errno.ENOLCK, r"\.lock cannot be locked \(No locks available\), as on a"),
    ],
)
def test_a_lock_that_is_not_to_be_had(tmp_path, monkeypatch, number, said):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lease.fcntl, "lockf", refused)
    with pytest.raises(InputError, match=said):
        workdir.claim(tmp_path / "run", {"config": {}})


def test_a_lease_that_is_a_folder_is_named(tmp_path):
    (tmp_path / ".lease").mkdir()
    with pytest.raises(InputError, match=r"\.lease cannot be read \(Is a directory\)"):
        workdir.claim(tmp_path, {"config": {}})


@pytest.mark.parametrize("name", ["run.json", "result.json", ".lock", ".lease"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path, name):
    if name == "result.json":
        workdir.claim(tmp_path, {"version": "0"})
        workdir.release(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError) as raised:
        workdir.claim(tmp_path, {"version": "0"})
        workdir.read_result(tmp_path)
    workdir.release(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / name} is no file, but a pipe or a device; remove it"
    )


def test_where_numbers_are_shown_may_change(folder):
    """W&B is no part of what a run computes: on, off, or another project."""
    run = folder / "run"
    workdir.claim(run, of_folder(folder))
    workdir.write_result(run, {"steps": 6})
    for fields in ({"wandb__project": "a"}, {"wandb__mode": "online"}, {}):
        workdir.claim(run, of_folder(folder, **fields))
        assert workdir.read_run(run)["config"]["wandb"]["project"] == fields.get(
            "wandb__project", ""
        )
    assert workdir.read_result(run) == {"steps": 6}
    with pytest.raises(InputError, match="differs in config.seed: 0 → 1: start it"):
        workdir.claim(run, of_folder(folder, wandb__project="a", seed=1))
    workdir.release(run)
