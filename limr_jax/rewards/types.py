"""`Graded`: what a step's rollouts are worth; `REASONS`: why each got its grade.

Correctness, shaped reward and validity are three arrays. Samplers and filters see
correctness, the learner sees the shaped reward, and nobody learns from an invalid
rollout, which counts as neither right nor wrong. Beside them stands a reason, for
people alone: nothing is learned from it.

Why is this rollout invalid? Its row in the workdir's `rollouts/*.jsonl.gz` has a
`reason`, the metrics have the share of every invalid one as `invalid/<reason>`, and the
table below says what it means and what helps.
"""

import dataclasses

import jax

# Arrays hold places in this table (`reason_PG`, `reason_B`, `reason_Nk`), so a new
# reason goes where it moves no other but invalid ones; dumps and metrics hold names.
REASONS = (
    # ---- of valid rollouts
    # A rule, the in-graph verifier, a judge or a function of yours graded it: right,
    # wrong, or a number of its own.
    "graded",
    # Right, as the judge (judge.init) says where the rules say wrong.
    "second_verifier",
    # Wrong: no box or no answer phrase, or cut off before its end.
    "no_answer",
    # Wrong: control characters in the answer, or more than 2,000 characters of it.
    "unreadable",
    # ---- of invalid rollouts; but with reward=limr a response that does not keep the
    # format is a valid −1, whatever its reason here, and so is every timeout, as in
    # the paper's released code.
    # The problem's reference says nothing to compare with, as `$ $` does. (A training
    # set whose references are empty is refused.)
    "no_reference",
    # reward=none: nothing is graded, every rollout is invalid.
    "no_reward",
    # The grader took longer than grader.cpu_seconds or grader.wall_seconds.
    "timeout",
    # The grader needed more than grader.memory_mib.
    "memory",
    # The grading process was killed, by what it read or by the system.
    "died",
    # The grader raised an exception over it.
    "error",
    # The judge could not read the question: it has more than judge.max_length tokens.
    "no_opinion",
    # A reward function of yours returned None or nan for it.
    "no_value",
)
INVALID = REASONS[REASONS.index("no_reference") :]  # the reasons of invalid rollouts
CODE = {name: code for code, name in enumerate(REASONS)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graded:
    """What P · G rollouts are worth, on the devices, whoever graded them.

    Row p, column g is rollout p · G + g. The hosts' graders give `host.HostGrades`,
    rows of one process as NumPy arrays; `HostGrader` puts them together as this.
    """

    reward_PG: jax.Array  # fp32: what the learner sees, shaped or not
    correct_PG: jax.Array  # fp32: raw correctness, what samplers and filters see
    valid_PG: jax.Array  # bool: False where it could not be graded
    well_formed_PG: jax.Array  # bool: an answer was given as it should be
    # fp32, of the hosts' graders: each part of the reward by name, before its weight;
    # -inf where the part had no value (a program that passes nan on could not be
    # searched for the nan that is a fault).
    parts: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    reason_PG: jax.Array | None = None  # int8: of REASONS; None where nobody reads it
    # bool: rollouts to learn from, where some are there for the others' baseline alone;
    # None: all valid ones.
    taken_PG: jax.Array | None = None
