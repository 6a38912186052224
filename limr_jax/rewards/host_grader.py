"""`HostGrader`: rollouts → strings → a `HostReward`'s grades → device arrays.

It has the interface of the in-graph verifier, (Rollout, PromptBatch) → Graded, for
rewards that cannot be computed on the devices. Each process grades the rows that its
own devices hold, each row is graded by one process alone, and the global arrays are put
together from them. What a reward is, and its parts, is `host`'s subject.
"""

import socket
import sys
import time
import traceback
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax.data.problems import Problems
from limr_jax.data.prompts import PromptBatch
from limr_jax.data.tokenizer import Tokenizer
from limr_jax.errors import InputError
from limr_jax.multihost import agree, preemption
from limr_jax.multihost.arrays import on_host, put_parts
from limr_jax.rewards import host
from limr_jax.rewards.types import Graded
from limr_jax.rollout.types import Rollout
from limr_jax.sharding import BATCH

SAY_SECONDS = (60, 600, 6000)  # of grading a part of a step when its length is said


class HostGrader:
    """(Rollout, PromptBatch) → Graded by a `host.HostReward`, on all hosts at once.

    problems: the data set that the batches' ids_P are of. Raises InputError where a
    user's reward function cannot take its columns.
    """

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        tokenizer: Tokenizer,
        problems: Problems,
        host_reward: host.HostReward,
    ):
        host_reward.check_columns(problems.columns, problems.source)
        self._mesh, self._tokenizer = mesh, tokenizer
        self._problems, self._reward = problems, host_reward
        # See `_put`: of the copies along `tensor` the first has the grades; the
        # compiler moves them to the devices that hold the others.
        self._first = jax.jit(
            lambda arrays: jax.tree.map(lambda x: x[0], arrays),
            out_shardings=NamedSharding(mesh, BATCH),
        )

    def __call__(self, rollout: Rollout, prompts: PromptBatch) -> Graded:
        """Grade P · G rollouts; all processes call it. Raises `host.GradingFailed`."""
        group = rollout.group
        # row_B: which rows of all hosts' B these are. From here on B counts them alone.
        arrays = [rollout.response_BT, rollout.mask_BT, rollout.truncated_B]
        if rollout.asked_B is not None:
            arrays.append(rollout.asked_B)
        row_B, values = own_rows(arrays)
        asked_B = values.pop() if rollout.asked_B is not None else None
        ids_P, group_rows_B = on_host(prompts.ids_P), row_B
        if asked_B is not None:
            # Of what was not to be written there is nothing to grade.
            values, row_B = [x[asked_B] for x in values], row_B[asked_B]
        response_BT, mask_BT, truncated_B = values
        problem_B = [int(i) for i in ids_P[row_B // group]]  # row b is prompt b // G
        # Tokens, the end token included; `decode` leaves it out of the text.
        length_B = mask_BT.sum(axis=1)
        texts = [
            self._tokenizer.decode(row[:length])
            for row, length in zip(response_BT, length_B, strict=True)
        ]
        problems = self._problems
        future = self._reward.submit(
            [problems.prompts[i] for i in problem_B],
            texts,
            [problems.answers[i] for i in problem_B],
            {
                name: [column[i] for i in problem_B]
                for name, column in problems.columns.items()
            },
            ended=~truncated_B,
            lengths=length_B,
        )
        grades = self._agreed(future)
        if asked_B is not None:
            grades = grades.spread(asked_B)
        return self._put(grades, group_rows_B, prompts=len(ids_P), group=group)

    def _wait(self, future) -> None:
        """Wait until it is done; now and then a line, as a user's function may hang."""
        start, say_at = time.monotonic(), iter(SAY_SECONDS)
        due = next(say_at)

        def done() -> bool:
            nonlocal due
            if time.monotonic() - start > due:
                names = ", ".join(self._reward.weights)
                line = f"reward={names} has graded for {due} s, and goes on"
                print(line, file=sys.stderr, flush=True)
                due = next(say_at, float("inf"))
            return future.done()

        # Not future.result(), in which a stop that the hosts agree on is not heard.
        preemption.until(done)

    def _agreed(self, future) -> host.HostGrades:
        """The grades, if all hosts have theirs; GradingFailed on all of them if not.

        On all of them, so that all end at this step and save what was before it.
        """
        self._wait(future)
        error = future.exception()
        line = str(error) if error else None
        if error and not isinstance(error, InputError):
            traceback.print_exception(error)
            kind = type(error).__name__
            line = f"grading failed by {kind}, a fault of limr_jax: please report the "
            line += "lines above"
        if line and jax.process_count() > 1:
            line = f"{socket.gethostname()}, in JAX {jax.process_index()}: {line}"
        # Without a limit: a user's function may take long over one host's rows. A host
        # that has died ends the others by the watchdog.
        lines = agree.exchange("grades", line, seconds=float("inf"))
        if wrong := [line for line in lines if line]:
            # In the order of JAX's processes, so that all hosts say the same line.
            raise host.GradingFailed(wrong[0]) from error
        return future.result()

    def eval_shape(self, rollout: Rollout, prompts: PromptBatch) -> Graded:
        """What a call gives, as shapes; so that it stands for a jitted program."""
        return shapes(
            self._mesh,
            len(prompts.ids_P),
            rollout.group,
            parts=self._reward.part_names,
        )

    def _put(
        self, grades: host.HostGrades, row_B: np.ndarray, *, prompts: int, group: int
    ) -> Graded:
        """The grades of this process's rows row_B, each on the device with its row."""
        # Unknown (nan) is 0 there; that it is not wrong, valid_PG says.
        correct_B = np.where(grades.valid_B, grades.correctness_B, 0.0)
        # Prompt → its place among this process's own. Groups are whole here: P divides
        # over the devices that rows lie on (`check_batch`).
        place = {int(row) // group: b // group for b, row in enumerate(row_B)}
        copies = self._mesh.shape["tensor"]
        # A host that has only other copies has no grades to put on its devices. So the
        # copies are an axis of their own, of which each host puts what it has.
        sharding = NamedSharding(self._mesh, PartitionSpec("tensor", *BATCH))

        def put(local_B):
            local_PG = np.ascontiguousarray(local_B.reshape(-1, group))

            def part(index):
                # index: three slices of `shape`, those of one device's part.
                copy_, own_prompts, _ = (
                    range(*s.indices(n)) for s, n in zip(index, shape)
                )
                if copy_[0] > 0:  # another copy, which `_first` does not look at
                    return np.zeros((1, len(own_prompts), group), local_PG.dtype)
                return local_PG[[place[p] for p in own_prompts]][None]

            shape = (copies, prompts, group)
            return put_parts(shape, sharding, part)

        graded = Graded(
            reward_PG=put(grades.reward_B),
            correct_PG=put(correct_B.astype(np.float32)),
            valid_PG=put(grades.valid_B),
            well_formed_PG=put(grades.well_formed_B),
            # Not nan, which a program that passes it on may not hold.
            parts={
                name: put(np.where(np.isnan(part_B), -np.inf, part_B))
                for name, part_B in grades.parts.items()
            },
            reason_PG=put(grades.reason_B),
        )
        return self._first(graded)


def shapes(mesh, prompts: int, group: int, parts: Iterable[str]) -> Graded:
    """What a HostGrader gives for P · G rollouts, as shapes.

    parts: the names of the reward's parts.
    """
    sharding = NamedSharding(mesh, BATCH)
    fp32, boolean, reason = (
        jax.ShapeDtypeStruct((prompts, group), dtype, sharding=sharding)
        for dtype in (np.float32, np.bool_, np.int8)
    )
    return Graded(
        reward_PG=fp32,
        correct_PG=fp32,
        valid_PG=boolean,
        well_formed_PG=boolean,
        parts=dict.fromkeys(parts, fp32),
        reason_PG=reason,
    )


def own_rows(arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    """(row_B, values): the rows of [B, …] arrays that this process grades.

    arrays: of one batch, global and cut alike by rows. row_B: int64, the rows' numbers
    among those of all processes; values: NumPy arrays of these rows, one for each of
    the arrays. Both are empty where this process grades none.

    Where the mesh's `tensor` axis goes over several hosts they hold the same rows; the
    one that has the first copy grades them.
    """
    rows = []
    for array in arrays:
        parts = {
            shard.index[0].start or 0: shard.data
            for shard in array.addressable_shards
            if shard.replica_id == 0
        }
        # Arrays of one batch are cut alike, so the last one's starts are all's.
        starts = sorted(parts)
        values = jax.device_get([parts[start] for start in starts])
        rows.append(
            # (0, …) where this process grades no row.
            np.concatenate([np.zeros((0, *array.shape[1:]), array.dtype), *values])
        )
    numbers = [start + np.arange(len(x)) for start, x in zip(starts, values)]
    return np.concatenate([np.zeros(0, int), *numbers]), rows
