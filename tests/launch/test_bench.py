"""launch/bench.py on a workload small enough for a test."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import ROOT

from limr_jax.errors import InputError

SCRIPT = runpy.run_path(str(ROOT / "launch/bench.py"))
WORKLOAD = {
    "name": "test",
    "seed": 0,
    "dtype": "float32",
    "model": {
        "arch": "qwen2",
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 48,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "init_std": 0.02,
    },
    "tokens": {"pad": 0, "bos": 1, "eos": 2, "first_normal": 3},
    "prompt_len": 6,
    "prompts_per_batch": 8,
    "group_size": 4,
    "max_new_tokens": 12,
    "sampling": {"temperature": 1.0},
    "variants": {"fixed": {}, "ragged": {"mean_len": 4}},
    "train": {
        "lr": 1e-6,
        "adam": [0.9, 0.999, 1e-8],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "epsilon": 0.2,
    },
    "warmup": 1,
    "repeats": 5,
}


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture
def bench(shared, tmp_path, monkeypatch, capsys):
    """Arguments → the printed object; the workload's folder cannot be written to."""
    folder = tmp_path / "bench"
    folder.mkdir()
    shutil.copy(shared / "bench/benchlib.py", folder)
    (folder / "workload.json").write_text(json.dumps(WORKLOAD))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    before = sorted(folder.iterdir())

    def run(*arguments):
        # It reads its environment, and where to print, when it is imported.
        sys.modules.pop("benchlib", None)
        SCRIPT["main"](["--workload", str(folder / "workload.json"), *arguments])
        assert sorted(folder.iterdir()) == before
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        return json.loads(said)

    yield run
    sys.modules.pop("benchlib", None)


@pytest.mark.slow
def test_a_step_with_kl_and_a_peer_beside_it(bench, tmp_path):
    peers = {
        "trl": {"step_s": {"median": 1e3}, "peak_rss_mib": 1e6, "first_step_s": 1e3},
        "hf": {"results": {"static": {"seconds": {"median": 1e3}}, "bad": {}}},
    }
    for name, result in peers.items():
        (tmp_path / f"{name}.json").write_text(f"chatter\n{json.dumps(result)}\n")
    files = ",".join(str(tmp_path / f"{name}.json") for name in peers)
    said = bench("--kl", "0.04", "--repeats", "2", "--against", files)
    for name in ("step_s", "generate_s", "ref_s", "update_s", "tokens"):
        figure = said[name]
        assert figure["n"] == 2
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
    phases = ("draw_s", "generate_s", "ref_s", "update_s")
    assert sum(said[name]["min"] for name in phases) <= said["step_s"]["max"]
    assert said["tokens"]["median"] == 8 * 4 * 12  # nothing ends before the limit
    assert said["compile_count"] > 0 and said["compiles_while_timed"] == 0
    assert said["compile_s"] > 0 and said["peak_rss_mib"] > 0
    assert said["first_step_s"] < said["start_to_first_step_s"]
    assert said["problems"] == 8 * (1 + 2 * 2)
    assert set(said["ratios"]["trl"]) == {"step_s", "peak_rss_mib", "first_step_s"}
    step = round(said["step_s"]["median"] / 1e3, 3)
    assert said["ratios"]["trl"]["step_s"] == step
    assert set(said["ratios"]["hf static"]) == {"generate_s"}
    assert said["ratios"]["hf bad"] == {}


@pytest.mark.slow
def test_ragged_without_kl_and_with_other_fields(bench, tmp_path):
    said = bench(
        *("--variant", "ragged", "--repeats", "1", "--problems", "100"),
        "--config.prompts_per_step=16",
    )
    assert said["ref_s"] is None
    assert (said["rollouts"], said["problems"]) == (64, 100)
    # Geometric of mean 4, cut at 12.
    assert 2 * 64 < said["tokens"]["median"] < 8 * 64
    [folder] = (tmp_path / "cache").glob("limr_jax-test-*-ragged")
    [weights] = (tmp_path / "cache").glob("weights-test-*-ragged.npz")
    ours = load_file(folder / "model.safetensors")
    with np.load(weights) as theirs:
        assert set(ours) == set(theirs.files)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.slow
def test_a_checkpoint_is_asked_real_problems(bench, tmp_path, monkeypatch):
    """Its own lengths: the problems' first, each as a user's message alone."""
    monkeypatch.syspath_prepend(tmp_path / "bench")
    bl = SCRIPT["_benchlib"](str(tmp_path / "bench/workload.json"))
    model = SCRIPT["_write_model"](bl, WORKLOAD, "ragged")
    data = tmp_path / "problems.jsonl"
    rows = [
        {"id": str(i), "problem": "t3 t4 " * (1 + i % 3), "answer": "t3"}
        for i in range(40)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = bench("--model", str(model), "--data", str(data), "--repeats", "1")
    assert (said["model"], said["data"]) == (str(model), str(data))
    assert "variant" not in said  # it is of the workload's model
    assert said["problems"] == 8 * (1 + 2)
    assert 8 * 4 < said["tokens"]["median"] < 8 * 4 * 12
    [asked] = (tmp_path / "cache").glob("limr_jax-asked-*.jsonl")
    first = json.loads(asked.read_text().splitlines()[1])
    assert first["prompt"] == [{"role": "user", "content": rows[1]["problem"]}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model", "somewhere"],
            "--model DIR and --data FILE belong together; give both",
        ),
        (
            ["--data", "problems.jsonl"],
            "--model DIR and --data FILE belong together; give both",
        ),
        (
            ["--model", "there", "--data", "p.jsonl", "--variant", "fixed"],
            "--variant=fixed with --model=there: variants are of the workload's own "
            "model, and a checkpoint ends its responses itself; leave it out",
        ),
        (["--variant", "long"], "--variant=long: the workload has fixed or ragged"),
        (["--workers", "2"], "unknown argument '--workers'; see --help"),
        (["--kl", "-1"], "--kl=-1.0 must be from 0 to 1e+06"),
        (["--kl", "nan"], "--kl=nan must be from 0 to 1e+06"),
        (["--repeats", "-1"], "--repeats=-1 must be from 0 to 10000"),
        (["--repeats", str(10**9)], "--repeats=1000000000 must be from 0 to 10000"),
        (
            ["--problems", str(10**12)],
            "--problems=1000000000000 must be from 0 to 1000000",
        ),
        (
            ["--problems", "3"],
            "--problems=3 must be at least 8, as many as a step draws",
        ),
        (
            ["--config.kl.coeficient=1"],
            "--config.kl.coeficient=1: no field 'kl.coeficient'; the nearest is "
            "kl.coefficient",
        ),
        (
            ["--workload", "nowhere.json"],
            "--workload=nowhere.json: no such file with benchlib.py beside",
        ),
        (
            ["--repeats", "1", "--against", "nowhere.json"],
            "--against=nowhere.json: no result ([Errno 2] No such file or directory: "
            "'nowhere.json')",
        ),
    ],
)
def test_what_is_wrong_is_one_line(bench, arguments, said):
    with pytest.raises(InputError) as error:
        bench(*arguments)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no workload (Expecting property name"),
        ("[]", "is no workload (it is no JSON object)"),
        ("[" * 10**5, "is no workload ("),
        ('{"name": "x", "seed": 0}', "lacks dtype, group_size, max_new_tokens, model,"),
    ],
)
def test_no_workload_is_one_line(bench, tmp_path, text, said):
    (tmp_path / "bench/workload.json").write_text(text)
    with pytest.raises(InputError) as error:
        bench()
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": {}}, "it lacks model.arch, model.head_dim, model.hidden_size, "),
        ({"model": 5}, "it lacks model.arch, model.head_dim, model.hidden_size, "),
        ({"train": {}}, "it lacks train.adam.0, train.adam.1, train.adam.2, "),
        (
            {"train": WORKLOAD["train"] | {"adam": [0.9, 0.999]}},
            "it lacks train.adam.2; take one of ../shared/bench as a pattern",
        ),
        ({"name": {"a": 1}}, "name={'a': 1} must be text, not dict; take one of "),
        ({"warmup": "x"}, "warmup='x' must be a whole number, not str; take one of "),
        ({"name": "../x"}, "name=../x must be at most 100 letters, digits, dots, "),
        ({"name": "n" * 101}, "name=nnn"),
        ({"warmup": -5}, "warmup=-5 must be from 1 to 10000; take one of "),
        ({"variants": 5}, "variants=5 must be an object, and not empty; take one of "),
        (
            {"variants": {}},
            "variants={} must be an object, and not empty; take one of ",
        ),
        (
            {"variants": {"fixed": 1}},
            "variants.fixed=1 must be an object; take one of ",
        ),
        (
            {"variants": {"ragged": {"mean_len": 0}}},
            "variants.ragged.mean_len=0 must be from 1 to 1048576; take one of ",
        ),
        (
            {"tokens": WORKLOAD["tokens"] | {"first_normal": 48}},
            "model.vocab_size=48 must be at least 49, for all of its tokens; take ",
        ),
        (
            {"model": WORKLOAD["model"] | {"num_heads": 3, "num_kv_heads": 2}},
            "model.num_heads=3 must be a multiple of num_kv_heads=2; take one of ",
        ),
        (
            {"model": WORKLOAD["model"] | {"head_dim": 7}},
            "model.head_dim=7 must be even; take one of ",
        ),
    ],
)
def test_a_part_of_a_workload_that_cannot_be(bench, tmp_path, changed, said):
    path = tmp_path / "bench/workload.json"
    path.write_text(json.dumps(WORKLOAD | changed))
    with pytest.raises(InputError) as error:
        bench()
    assert str(error.value).startswith(f"--workload={path}: {said}")


@pytest.mark.parametrize("name", ["workload.json", "workload_135m.json"])
def test_the_workloads_that_there_are(shared, tmp_path, monkeypatch, name):
    path = shared / "bench" / name
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    monkeypatch.delitem(sys.modules, "benchlib", raising=False)
    bl = SCRIPT["_benchlib"](str(path))
    monkeypatch.delitem(sys.modules, "benchlib")  # which knows this test's cache
    read = SCRIPT["read_workload"](bl, str(path))
    assert read["model"] == json.loads(path.read_text())["model"]


def test_a_circle_of_links_is_no_workload(bench, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(link)
    with pytest.raises(InputError) as error:
        bench("--workload", str(link))
    assert str(error.value) == (
        f"--workload={link}: no such file with benchlib.py beside"
    )


def test_another_workload_of_the_same_name_is_another_model(
    bench, tmp_path, monkeypatch
):
    """What the cache has of the first is not taken for the second."""
    monkeypatch.syspath_prepend(tmp_path / "bench")
    path, layers = tmp_path / "bench/workload.json", []
    for count in (1, 3):
        model = WORKLOAD["model"] | {"num_layers": count}
        path.write_text(json.dumps(WORKLOAD | {"model": model}))
        bl = SCRIPT["_benchlib"](str(path))
        workload = SCRIPT["read_workload"](bl, str(path))
        folder = SCRIPT["_write_model"](bl, workload, "fixed")
        layers.append(json.loads((folder / "config.json").read_text())["num_layers"])
    assert layers == [1, 3]


def test_too_few_problems_are_named_by_their_flag(bench, tmp_path):
    rows = [{"id": str(i), "problem": "t3", "answer": "t3"} for i in range(5)]
    data = tmp_path / "few.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as error:
        bench("--model", "there", "--data", f"{data}[:3]", "--repeats", "1")
    assert str(error.value) == (
        f"--data={data}[:3] has 3 problems, and the steps draw 24; give fewer "
        "--repeats or a longer set"
    )


@pytest.mark.parametrize(
    "last",
    [
        "[1]",
        "3",
        "null",
        '"text"',
        '{"results": [1]}',
        '{"results": {"static": 3}}',
        '{"step_s": "1"}',
        '{"step_s": 0}',
        '{"step_s": true}',
        '{"step_s": {"mean": 1}}',
        '{"seconds": {"median": NaN}}',
    ],
)
def test_a_peer_without_a_result_is_one_line(tmp_path, last):
    path = tmp_path / "trl.json"
    path.write_text(f"chatter\n{last}\n")
    with pytest.raises(InputError) as error:
        SCRIPT["_read_peers"](str(path))
    assert str(error.value) == (
        f"--against={path}: no result (its last line is no object of figures above "
        "0); give a peer's output, or leave it out"
    )


def test_figures_of_peers(tmp_path):
    for folder, figures in (("a", {"step_s": 2.0, "generate_s": None}), ("b", {})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "trl.json").write_text(json.dumps(figures))
    one, two = (str(tmp_path / x / "trl.json") for x in "ab")
    ours = dict.fromkeys(SCRIPT["_COMPARED"], {"median": 3.0})
    peers = SCRIPT["_read_peers"](one)
    assert SCRIPT["ratios"](ours, peers) == {"trl": {"step_s": 1.5}}
    with pytest.raises(InputError) as error:
        SCRIPT["_read_peers"](f"{one},{two}")
    assert str(error.value) == (
        f"--against={one},{two}: two results are called 'trl', as their files are; "
        "call one otherwise"
    )


def test_two_processes_make_the_same_folder(tmp_path, monkeypatch):
    """The second to end takes the first one's; neither leaves anything else."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))
    made = tmp_path / "limr_jax-model"

    def write(folder):
        for each in (folder, made):  # another process ends meanwhile
            each.mkdir()
            (each / "config.json").write_text(each.name)

    assert SCRIPT["_kept"]("model", write) == made
    assert (made / "config.json").read_text() == made.name
    assert [*tmp_path.iterdir()] == [made]


def test_no_room_for_a_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path))

    def write(folder):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError) as error:
        SCRIPT["_kept"]("model", write)
    assert str(error.value) == (
        f"{tmp_path}/limr_jax-model: cannot be written (No space left on device); "
        "check path, rights and room"
    )
    assert not [*tmp_path.iterdir()]
