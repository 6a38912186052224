"""What a run writes into its workdir beside checkpoints and metrics."""

import contextlib
import itertools
from collections.abc import Iterator

import jax

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.models.attention import kernel_check
from limr_jax.multihost import agree
from limr_jax.multihost.arrays import on_host
from limr_jax.rewards.types import REASONS
from limr_jax.setup import Run
from limr_jax.step import Round
from limr_jax.storage import files, metrics
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.dump_rows import dump_rows
from limr_jax.storage.workdir import KERNELS, read_kernels, workdir_path, write_json


def write_left_out(run: Run, workdir) -> None:
    """left_out.json: by set, the ids of all problems whose prompts are too long."""
    sets = {"train": run.train_set, "eval": run.eval_set}
    left_out = {
        name: tokenized.left_out
        for name, tokenized in sets.items()
        if tokenized is not None and tokenized.left_out
    }
    if left_out and jax.process_index() == 0:
        path = workdir_path(workdir) / "left_out.json"
        write_json(path, left_out)


def write_kernels(run: Run, workdir) -> None:
    """kernels.json: what the last start found of each kernel that fits its rows."""
    if run.kernels and jax.process_index() == 0:
        before = []
        # Only a record, which is written anew: damaged, it ends no run.
        with contextlib.suppress(InputError):
            before = read_kernels(workdir)
        for line in kernel_check.changes(before, run.kernels):
            console.warn(line)
        rows = [finding.as_json() for finding in run.kernels]
        # JSON has no infinity, the gap of what is no number.
        content = files.finite({"kernels": rows})
        write_json(workdir_path(workdir) / KERNELS, content)


def rollout_rows(run: Run, rounds: list[Round]) -> Iterator[dict]:
    """Each rollout of a step as a row of the dump, used or not, of all hosts'."""
    # At once, not as the rows are read: all hosts take part, and one of them reads.
    arrays = on_host(
        [
            {
                "ids_P": drawn.ids_P,
                "graded": graded,
                "response_BT": rollout.response_BT,
                "mask_BT": rollout.mask_BT,
                "truncated_B": rollout.truncated_B,
                "asked_B": rollout.asked_B,
            }
            for drawn, rollout, graded in (each.groups for each in rounds)
        ]
    )
    return itertools.chain.from_iterable(_rows_of(run, **each) for each in arrays)


def _rows_of(run: Run, *, graded, **arrays) -> Iterator[dict]:
    return dump_rows(
        run.train_set.problems,
        run.tokenizer.decode,
        **arrays,
        reward_PG=graded.reward_PG,
        correct_PG=graded.correct_PG,
        valid_PG=graded.valid_PG,
        parts=graded.parts,
        reason_PG=graded.reason_PG,
        reasons=REASONS,
    )


def result_of(run: Run, config, workdir, policy, log: metrics.Metrics) -> dict:
    """The run's one JSON object, all but the seconds; process 0 puts it together."""
    # Before the others return: every process takes part in the digest.
    digest = params_digest(policy)
    if jax.process_index() > 0:
        return agree.broadcast("result", None)
    before, after = (log.evaluated(n) or {} for n in (0, config.num_steps))
    k, epoch = config.evaluation.samples, log.last.get("epoch")
    result = {
        "steps": config.num_steps,
        "epochs": None if epoch is None else metrics.whole_epochs(epoch),
        "eval_problems": len(run.eval_set) if run.eval_set else None,
        "eval_accuracy_before": before.get("accuracy"),
        "eval_accuracy_after": after.get("accuracy"),
        "eval_accuracy_well_formed_before": before.get("accuracy_well_formed"),
        "eval_accuracy_well_formed_after": after.get("accuracy_well_formed"),
        f"pass_at_{k}_before": before.get(f"sampled/pass_at_{k}"),
        "format_valid_before": before.get("well_formed"),
        "params_digest": digest,
        "workdir": str(workdir),
    }
    return agree.broadcast("result", result)
