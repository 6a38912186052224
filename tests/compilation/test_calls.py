"""The compile report tells the truth: its programs are those that a run calls."""

import dataclasses
import json
import logging
import math
import re
import types
from functools import partial

import jax
import pytest
from tiny_run import MODEL, ROOT, configure, set_up, write_problems

from limr_jax import train
from limr_jax.compilation import calls as calls_lib
from limr_jax.compilation import compile, decode_traffic, report, slices
from limr_jax.data import problem_rows
from limr_jax.data.problems import Problems
from limr_jax.errors import InputError
from limr_jax.evaluation import evaluator
from limr_jax.models import from_config
from limr_jax.models.attention import ragged_decode
from limr_jax.models.config import TARGETS
from limr_jax.rewards import from_config as rewards_from_config
from limr_jax.samplers.from_config import SAMPLERS, make_sampler

GIB = 2**30


class Recorder:
    """A jitted program that notes what it was called with."""

    def __init__(self, name, program, seen):
        self.name, self.program, self.seen = name, program, seen

    def __call__(self, *args):
        self.seen.setdefault(self.name, []).append((self.program, signature(args)))
        return self.program(*args)


def signature(args):
    """Structure, shapes, dtypes and shardings of a call's arguments."""
    leaves, tree = jax.tree.flatten(args)
    return (
        tree,
        tuple((x.shape, str(x.dtype)) for x in leaves),
        tuple(x.sharding for x in leaves),
    )


def same(one, other) -> bool:
    """The same call, so that it compiles nothing anew."""
    if one[:2] != other[:2]:
        return False
    ranks = [len(shape) for shape, *_ in one[1]]
    pairs = zip(one[2], other[2], ranks, strict=True)
    return all(a.is_equivalent_to(b, rank) for a, b, rank in pairs)


RUNS = {
    "ppo with KL, drawing from some tokens": {
        "algorithm": "ppo",
        "critic__learning_rate": 0.01,
        "kl__coefficient": 0.1,
        "rollout__slots": 4,
        "rollout__top_p": 0.9,
        "rollout__min_p": 0.01,
    },
    "graded by the hosts, some groups kept": {
        "reward": "math",
        "filter__groups": "mixed",
        "filter__max_rounds": 2,
        "filter__tau": 0.0,
    },
    "jepo": {"algorithm": "jepo", "reward": "none", "loss_normaliser": "rollout"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", RUNS.values(), ids=RUNS)
def test_the_programs_of_a_run_are_those_reported(
    tmp_path, monkeypatch, quick_compiler, caplog, fields
):
    problems = write_problems(tmp_path / "train.jsonl", 9)
    held_out = write_problems(tmp_path / "eval.jsonl", 3, add=2)
    config = configure(
        problems, num_steps=2, data__eval=held_out, mesh__tensor=2, **fields
    )
    jax.clear_caches()  # what another test compiled is compiled again
    run = set_up(config, devices=4)
    seen = {}
    wrapped = {
        name: Recorder(name, program, seen)
        for name, program in run.programs._asdict().items()
        if callable(program)
    }
    made, by_hosts = run.programs, fields.get("reward") == "math"
    examined = dataclasses.replace(run, programs=made._replace(**wrapped))
    if not by_hosts:
        examined = dataclasses.replace(
            examined, grade=wrapped["grade"], grade_eval=wrapped["grade_eval"]
        )
    held = {}

    def program(*args, **more):
        answer, chunk = original(*args, **more)
        held["evaluate"] = (answer, chunk)
        return Recorder("evaluate", answer, seen), chunk

    original = evaluator.program
    monkeypatch.setattr(evaluator, "program", program)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train.train(examined, config, tmp_path / "run")
    finished = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)

    def shapes(tokenized):
        return calls_lib.prompt_shapes(
            run.mesh,
            len(tokenized),
            tokenized.prompt_NL.shape[1],
            tokenized.answer_NA.shape[1],
        )

    calls = calls_lib.calls(
        run,
        run.mesh,
        shapes(run.train_set),
        eval_prompts=shapes(run.eval_set),
        generation=run.generation,
        compute=run.compute,
        micro_batches=1,
        minibatches=1,
        evaluators={"evaluate": held["evaluate"]},
    )
    reported = {}
    for call in calls:
        name = call.name.split(": ")[-1]
        reported.setdefault(name, []).append((call.program, signature(call.args)))
    assert reported.keys() == seen.keys()
    for name, ways in seen.items():
        for program, way in ways:
            assert any(program is p and same(way, w) for p, w in reported[name]), name
        for program, way in reported[name]:  # and nothing is made up
            assert any(program is p and same(way, w) for p, w in ways), name
    # What else compiles: a random model's first parameters, keys, and what a
    # checkpoint and the result's digest take to the host.
    ours = {p.__name__ for ways in reported.values() for p, _ in ways}
    others = set(finished) - ours
    assert ours <= set(finished)
    host = {"slice", "stage", "convert_element_type", "stream_key", "_sums_of_all"}
    assert others <= {"init_params", "_threefry_fold_in", "_threefry_seed"} | host


def tiny(**fields):
    """A config whose problems are not on this machine."""
    stand_ins = {"type": "v4-8", "problems": 64, "answer_length": 4}
    fields |= {f"slice__{name}": value for name, value in stand_ins.items()}
    return configure("absent.jsonl", **fields)


@pytest.fixture
def no_slice(monkeypatch, compiled_anew):
    """CPU devices in the place of a slice's."""
    monkeypatch.setattr(slices, "devices", lambda _: jax.devices()[:4])


@pytest.mark.slow
def test_a_report_of_programs_that_fit_and_of_some_that_do_not(
    no_slice, quick_compiler
):
    config = tiny(mesh__tensor=2, kl__coefficient=0.1, rollout__slots=4)
    plan = calls_lib.plan(config)
    programs = compile.compile_all(plan)
    assert [p.name for p in programs] == [call.name for call in plan.calls]
    cost = {"wall_seconds": 1.0, "cpu_seconds": 2.0, "peak_gib": 3.0}
    made = json.loads(json.dumps(report.report(config, plan, programs, cost)))
    assert made["fits"] and not made["advice"]
    assert {row["phase"] for row in made["programs"]} == {"set-up", "step"}
    assert made["rollouts"]["waves"] == 2
    assert all(row["total_gib"] > 0 for row in made["programs"])
    update = made["programs"][-1]
    assert update["name"] == "update" and update["flops"] > 0
    assert update["collectives"]["all-reduce"]["bytes"] > 0
    assert "a bound" in report.text(made)

    large = [
        dataclasses.replace(p, temporaries=40 * GIB) if p.name == "update" else p
        for p in programs
    ]
    made = report.report(config, plan, large, cost)
    assert not made["fits"] and not made["advice"]  # none of a tiny model's helps
    said = report.text(made)
    assert "does not fit (update); what helps most: no setting of memory" in said


# What the config of a run might say of a sampler beside its name.
OWN = {
    "curriculum": {"column": "hardness", "minimum": 3.5},
    "adarft": {"column": "hardness"},
}


@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, OWN.get(name, {})) for name in SAMPLERS), ("lim", {"scores": "x.jsonl"})],
)
def test_stand_ins_have_what_the_sampler_reads(tmp_path, monkeypatch, name, own):
    monkeypatch.chdir(tmp_path)
    # The only score is not that of the first line.
    scores = [{"id": f"7/{i}", "lim_score": [None, 0.5][i == 90]} for i in range(99)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, scores)))
    fields = {f"sampler__{name}__{field}": value for field, value in own.items()}
    config = tiny(sampler__name=name, **fields)
    problems, _ = calls_lib._problems(config, jax.make_mesh((4,), ("data",)))
    make = partial(make_sampler, config.sampler, prompts=4, group=2, seed=0)
    state = jax.eval_shape(make(problems).init)
    # A program has the shapes that it has of problems that are there.
    rows = [{"id": f"7/{i + 90}", "hardness": 4, "level": 4} for i in range(64)]
    assert state == jax.eval_shape(make(problems_of(rows)).init)


def problems_of(rows):
    given = {"problem": "1+1=", "answer": "2"}
    rows = [(f"line {i}", given | row) for i, row in enumerate(rows)]
    return Problems(source="here", **problem_rows.read_fields(rows))


def test_a_plan_with_a_column_that_the_stand_ins_have(no_slice):
    plan = calls_lib.plan(tiny(sampler__name="adarft", mesh__tensor=2))
    state = next(call for call in plan.calls if call.name == "draw").args[0]
    assert state.sampler.difficulty_N.shape == (64,)


@pytest.mark.parametrize(("samples", "names"), [(0, 1), (1, 1), (2, 2)])
def test_one_response_is_evaluated_by_no_program_of_its_own(no_slice, samples, names):
    """As the run has it: greedy, and pass@k where k is more than 1."""
    plan = calls_lib.plan(tiny(data__eval="absent.jsonl", evaluation__samples=samples))
    evaluated = [call.name for call in plan.calls if call.phase == "evaluation"]
    both = ["evaluate", "evaluate: grade_eval"]
    both += ["evaluate sampled", "evaluate sampled: grade_eval"]
    assert evaluated == both[: 2 * names]


@pytest.mark.slow
def test_what_helps_most_where_a_program_does_not_fit(no_slice):
    """By hand: 4 rows a chip of 2,048 columns, 1,024 wide, 8 layers, fp32, kept."""
    config = tiny(
        model__width=1024,
        model__mlp_width=8192,
        model__layers=8,
        model__remat=True,
        mesh__fsdp=2,
        mesh__tensor=2,
        micro_batch_rows=8,
        rollout__max_prompt_length=1024,
        rollout__max_response_length=1024,
    )
    plan = calls_lib.plan(config)
    programs = [stand_in(call.name, error="RESOURCE_EXHAUSTED") for call in plan.calls]
    found = report.advice(config, plan, programs, 30 * GIB)
    freed = {row["setting"]: row["frees_gib"] for row in found}
    assert freed["--config.micro_batch_rows=4"] == 4 * 2048 * 1024 * 4 * 8 / GIB / 2
    assert list(freed.values()) == sorted(freed.values(), reverse=True)
    assert len(freed) == 3 and "twice the chips, on mesh.fsdp" in freed


def test_what_helps_beside_a_frozen_base(no_slice, monkeypatch):
    """Its reference is the base: no KL frees nothing, int8 three bytes of four."""
    config = tiny(
        model__width=1024,
        model__mlp_width=8192,
        model__layers=8,
        model__lora__rank=2,
        kl__coefficient=0.1,
        mesh__fsdp=2,
        mesh__tensor=2,
    )
    plan = calls_lib.plan(config)
    programs = [stand_in(call.name, error="RESOURCE_EXHAUSTED") for call in plan.calls]
    found = report.advice(config, plan, programs, 30 * GIB)
    freed = {row["setting"]: row["frees_gib"] for row in found}
    model = plan.compute.model
    kernels = 8 * sum(math.prod(model.projection_shape(name)) for name in TARGETS)
    assert freed["--config.model.base_dtype=int8"] == kernels * 3 / 4 / GIB
    # A judge that is the base shrinks with it; of other numbers it would be a copy.
    monkeypatch.setattr(rewards_from_config, "is_base", lambda config, devices: True)
    found = report.advice(config, plan, programs, 30 * GIB)
    both = "--config.model.base_dtype=int8 --config.judge.dtype=int8"
    assert both in [row["setting"] for row in found]
    # Half of a chip's quarter of the base, and the adapters' little.
    assert freed["twice the chips, on mesh.fsdp"] * GIB > 4 * kernels / 4 / 2
    assert "--config.kl.coefficient=0" not in freed


def test_a_decode_step_beside_what_it_must_read(no_slice):
    """By hand: twice the weights a step, and nothing where it did not compile."""
    plan = calls_lib.plan(tiny(mesh__tensor=2, rollout__max_response_length=64))
    params = next(call.args[0] for call in plan.calls if call.name == "generate")
    weights = sum(x.size for x in jax.tree.leaves(params)) * 4 / 2  # fp32, 2 chips
    column = report.column_bytes(plan)
    steps = sum(part.steps for part in plan.decoded)
    must = weights * steps + column * sum(part.live for part in plan.decoded)
    twice = tuple(2 * weights for _ in plan.decoded)
    told = report.decode(plan, [stand_in("generate", decode_bytes=twice)])
    assert told["compiled"] == pytest.approx(2 * weights * steps / must)
    assert told["weights_bytes"] == weights and told["weights_of_compute"] == 1
    assert told["compiled_bytes"] == pytest.approx(2 * weights)
    told = report.decode(plan, [stand_in("generate", error="too large")])
    assert told["compiled"] is None and told["scheduled"] > 1
    assert [part["compiled"] for part in told["parts"]] == [None] * len(told["parts"])


def test_a_decode_step_reads_an_int8_bases_own_bytes(no_slice):
    """By hand: of 7 kernels a layer a byte a weight; embedding and adapters bf16."""
    fields = {"model__lora__rank": 2, "model__dtype": "bfloat16"}
    plan = calls_lib.plan(tiny(**fields, model__base_dtype="int8"))
    half = calls_lib.plan(tiny(**fields, model__base_dtype="bfloat16"))
    assert report.decode_weights(half)[0] > report.decode_weights(half)[1]  # norms
    own, as_compute = report.decode_weights(plan)
    params = next(call.args[0] for call in plan.calls if call.name == "generate")
    sizes, width = {}, {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Scales of norms and of kernels are fp32.
        width[name] = 4 if name.endswith("scale") else 2
        if name.startswith("blocks/") and name.endswith("/kernel"):
            width[name] = 1
        sizes[name] = x.size
    assert own == sum(size * width[name] for name, size in sizes.items())
    assert as_compute == 2 * sum(sizes.values()) > own


def stand_in(name, **fields):
    """What a compiler might have said."""
    fields = dict.fromkeys(("flops", "hbm_bytes", "seconds"), 0.0) | fields
    sizes = ("arguments", "output", "temporaries", "code", "elsewhere")
    fields = dict.fromkeys(sizes, 0) | {"error": ""} | fields
    return compile.Compiled(
        name=name, phase="step", collectives={}, kernels=[], **fields
    )


def test_what_is_in_hbm_at_once(no_slice):
    """By hand: while it generates, the optimiser and the reference are there too."""
    config = tiny(mesh__tensor=2, kl__coefficient=0.1)
    calls = {call.name: call for call in calls_lib.plan(config).calls}
    generate = calls["generate"]
    given = {id(x) for x in jax.tree.leaves(generate.args)}
    state, reference = calls["update"].args[0], calls["reference"].args[0]
    for tree in (state.train.opt_state, reference, state.sampler):
        rest = {id(x) for x in jax.tree.leaves(tree)}
        assert rest <= {id(x) for x in jax.tree.leaves(generate.alive)} - given


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "times"), [("judge", 2), ("math", 1)])
def test_a_judge_is_asked_and_stays(no_slice, quick_compiler, spec, times):
    """All 8 answers, 4 at a time; of those that the rules call wrong one batch."""
    config = tiny(
        reward=spec,
        judge__init=ROOT / "limr_jax/assets/arithmetic",
        judge__rows=4,
        judge__max_length=64,
    )
    calls = {call.name: call for call in calls_lib.plan(config).calls}
    asked = calls["judge"]
    params, tokens, lengths = asked.args
    assert (tokens.shape, lengths.shape, asked.times) == ((4, 64), (4,), times)
    ids = {id(x) for x in jax.tree.leaves(params)}
    assert ids <= {id(x) for x in jax.tree.leaves(calls["generate"].alive)}
    one = compile.compile_call(dataclasses.replace(asked, times=1))
    assert compile.compile_call(asked).flops == times * one.flops > 0


@pytest.mark.slow
def test_what_comes_after_the_update_has_its_state_alone(no_slice):
    """The table of drafts is remembered when the old state is no more."""
    calls = calls_lib.plan(tiny(rollout__drafts=2)).calls
    update, remember = (
        next(call for call in calls if call.name == name)
        for name in ("update", "remember")
    )
    old = {id(x) for x in jax.tree.leaves(update.args[0])}
    assert not old & {id(x) for x in jax.tree.leaves(remember.alive)}
    assert remember.args[0].shape == update.args[0].drafts.shape


@pytest.mark.slow
def test_a_judge_that_is_the_base_takes_no_memory_of_its_own(no_slice):
    checkpoint = ROOT / "limr_jax/assets/arithmetic"
    config = tiny(
        reward="judge",
        judge__init=checkpoint,
        judge__max_length=64,
        model__init=checkpoint,
        model__lora__rank=2,
        mesh__tensor=2,
        **{f"model__{name}": 0 for name in MODEL},  # as its config.json says
    )
    calls = {call.name: call for call in calls_lib.plan(config).calls}
    update, judge = calls["update"], calls["judge"]
    params = {id(x) for x in jax.tree.leaves(judge.args[0])}
    assert params == {id(x) for x in jax.tree.leaves(update.args[-1])}
    assert judge.mesh == update.mesh


@pytest.mark.slow
def test_how_often_each_width_of_the_cache_is_read(no_slice):
    """By hand: widths 256, 512 and 600; prompts of 500, responses of 100."""
    calls = {call.name: call for call in calls_lib.plan(wide(0)).calls}
    # The first 12 of 99 steps write columns 500 to 511.
    assert calls["generate"].shares == (0, 12 / 99, 87 / 99)
    assert calls["generate"].turns == (99, 0)
    # In two waves the second begins as the first did.
    calls = {call.name: call for call in calls_lib.plan(wide(4)).calls}
    assert calls["generate"].shares == (0, 12 / 99, 87 / 99)
    assert calls["generate"].turns == (2, 1, 99, 0)
    calls = {call.name: call for call in calls_lib.plan(tiny()).calls}
    assert calls["generate"].shares == ()


@pytest.mark.slow
def test_prompts_that_decode_reads_where_they_are(no_slice, monkeypatch):
    """No turn copies them, and a slot has its response's columns only."""
    copied = calls_lib.plan(wide(4))
    assert not copied.shared and report.slot_columns(copied) == 500 + 100
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))
    plan = calls_lib.plan(wide(4))
    assert plan.shared and report.slot_columns(plan) == 100
    calls = {call.name: call for call in plan.calls}
    assert calls["generate"].turns == (2, 99, 0)
    assert calls["generate"].decoded == ragged_decode.Rounds(500, 99, group=2)
    # Of a device's two rollouts at once, the prompt's 500 columns are live once.
    parts, length_B = calls_lib.plan(wide(8)).decoded, decode_traffic.lengths(2, 100)
    own = sum(sum(range(length)) for length in length_B)
    assert sum(part.live for part in parts) == 500 * (max(length_B) - 1) + own
    programs = [stand_in("generate")]
    told = report._waves(tiny(), plan, programs, 0.0)
    beside = report._waves(tiny(), copied, programs, 0.0)
    assert beside["cache_gib_a_chip"] == pytest.approx(6 * told["cache_gib_a_chip"])
    assert beside["prompts_gib_a_chip"] == told["prompts_gib_a_chip"] > 0


def test_temporaries_are_what_is_laid_out_beside_the_rest(no_slice, monkeypatch):
    calls = {call.name: call for call in calls_lib.plan(tiny()).calls}
    monkeypatch.setattr(compile, "_laid_out", lambda dump: 10 * GIB)
    told = compile.compile_call(calls["draw"])
    assert told.arguments + told.output + told.temporaries == 10 * GIB


def wide(slots):
    return tiny(
        rollout__max_prompt_length=500,
        rollout__max_response_length=100,
        rollout__slots=slots,
    )


def test_memory_is_what_the_compiler_has_laid_out(tmp_path):
    """All that a program of two arguments of 1 MiB needs, by hand; nothing, unsaid."""
    assert compile._laid_out(tmp_path) == 0
    x = jax.ShapeDtypeStruct((512, 512), "float32")
    options = {"xla_dump_to": str(tmp_path)}
    jax.jit(lambda x, y: x @ y).lower(x, x).compile(compiler_options=options)
    assert 3 * 2**20 <= compile._laid_out(tmp_path) < 3 * 2**20 + 2**16


def test_what_a_compiler_that_fails_says_it_wanted():
    needed = compile.needed_temporaries
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (120.00G) exceeds available HBM (30.75G)."
    )
    assert needed(text, 20 * GIB) == 120 * GIB
    text = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
        "memory space hbm. Used 45.50G of 30.75G hbm. Exceeded hbm capacity by 14.75G. "
        "Total hbm usage >= 46.02G: reserved 530.00M program 25.50G arguments 20.00G"
    )
    assert needed(text, 20 * GIB) == int(25.5 * GIB)
    assert needed("something else", 0) == 0


MISTAKES = {
    "slice.type='v4-33' is unknown": {"slice.type": "v4-33"},
    "slice.problems=3 \\(at least prompts_per_step=4\\)": {"slice.problems": 3},
    "model.init=nowhere is not on this machine": {"model.init": "nowhere"},
    "model.preset='qwen9' is unknown": {"model.preset": "qwen9"},
    "judge.init=nowhere is not on this machine": {
        "judge.init": "nowhere",
        "reward": "judge",
    },
    "rollout.compactions=7 must be from 0 to 6": {"rollout.compactions": 7},
}


@pytest.mark.parametrize(("line", "fields"), MISTAKES.items())
def test_mistakes(monkeypatch, line, fields):
    if "type" not in line:
        monkeypatch.setattr(slices, "devices", lambda _: jax.devices()[:4])
    config = tiny(**{k.replace(".", "__"): v for k, v in fields.items()})
    if fields.keys() & {"slice.type", "slice.problems"}:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            for name, value in fields.items():
                config[name.split(".")[0]][name.split(".")[1]] = value
    with pytest.raises(InputError, match=line):
        calls_lib.plan(config)


def test_a_checkpoint_of_other_dimensions_than_the_preset(shared):
    given = types.SimpleNamespace(
        init=str(shared / "models/qwen2-tiny"), preset="qwen2.5-1.5b"
    )
    given = {**dict.fromkeys((*MODEL, "vocab_size"), 0), **vars(given)}
    from ml_collections import ConfigDict

    with pytest.raises(InputError, match="preset=qwen2.5-1.5b has vocab_size=151936"):
        from_config.read_model_config(ConfigDict(given), 0)
