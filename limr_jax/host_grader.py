"""Rollouts → strings → grades → device arrays: the host's half of a step.

Each process grades the rows that its own devices hold, each row is graded by one
process alone, and the global arrays are put together from them.
"""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax import data, hosts, reward, stop, text
from limr_jax.programs import Drawn, Graded
from limr_jax.rollout import Rollout
from limr_jax.sharding import BATCH


class HostGrader:
    """Grades with a `reward.HostReward`, behind the in-graph verifier's interface."""

    def __init__(
        self,
        mesh: jax.sharding.Mesh,
        tokenizer: text.Tokenizer,
        problems: data.Problems,
        host_reward: reward.HostReward,
    ):
        host_reward.check_columns(problems.columns)
        self._mesh, self._tokenizer = mesh, tokenizer
        self._problems, self._reward = problems, host_reward
        self._first = jax.jit(
            lambda arrays: jax.tree.map(lambda x: x[0], arrays),
            out_shardings=NamedSharding(mesh, BATCH),
        )

    def __call__(self, written: Rollout, drawn: Drawn) -> Graded:
        group = written.group
        row_B, (response_BT, mask_BT, truncated_B) = own_rows(
            (written.response_BT, written.mask_BT, written.truncated_B)
        )
        ids_P = hosts.on_host(drawn.ids_P)
        problem_B = [int(i) for i in ids_P[row_B // group]]
        length_B = mask_BT.sum(axis=1)
        texts = [
            self._tokenizer.decode(row[:length])
            for row, length in zip(response_BT, length_B, strict=True)
        ]
        problems = self._problems
        grading = self._reward.submit(
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
        stop.until(grading.done)
        grades = grading.result()
        formed = [
            reward.well_formed(response, not cut)
            for response, cut in zip(texts, truncated_B, strict=True)
        ]
        correct_B = np.where(grades.valid_B, grades.correctness_B, 0.0)
        return self._put(
            row_B,
            len(ids_P),
            group,
            Graded(
                reward_PG=grades.reward_B,
                correct_PG=correct_B.astype(np.float32),
                valid_PG=grades.valid_B,
                well_formed_PG=np.asarray(formed, bool),
                parts=grades.parts,
            ),
        )

    def _put(self, row_B: np.ndarray, prompts: int, group: int, graded) -> Graded:
        """The grades of this process's rows, each part on the device that has them."""
        place = {int(row) // group: b // group for b, row in enumerate(row_B)}
        copies = self._mesh.shape["tensor"]
        sharding = NamedSharding(self._mesh, PartitionSpec("tensor", *BATCH))

        def put(local_B):
            local_PG = np.ascontiguousarray(local_B.reshape(-1, group))

            def part(index):
                copy_, wanted, _ = (range(*s.indices(n)) for s, n in zip(index, shape))
                if copy_[0] > 0:  # another copy, which `_first` does not look at
                    return np.zeros((1, len(wanted), group), local_PG.dtype)
                return local_PG[[place[p] for p in wanted]][None]

            shape = (copies, prompts, group)
            return hosts.put_parts(shape, sharding, part)

        return self._first(jax.tree.map(put, graded))

    def close(self) -> None:
        """End the worker processes."""
        self._reward.close()


def own_rows(arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    """The numbers and the values of the rows of batch arrays that this process grades.

    Where `tensor` goes over several hosts they hold the same rows; one of them has the
    first copy.
    """
    rows = []
    for array in arrays:
        parts = {
            shard.index[0].start or 0: shard.data
            for shard in array.addressable_shards
            if shard.replica_id == 0
        }
        starts = sorted(parts)
        values = jax.device_get([parts[start] for start in starts])
        rows.append(
            np.concatenate([np.zeros((0, *array.shape[1:]), array.dtype), *values])
        )
    numbers = [start + np.arange(len(x)) for start, x in zip(starts, values)]
    return np.concatenate([np.zeros(0, int), *numbers]), rows
