"""What drafted rollouts would save, simulated over the rollouts that a run has dumped.

A draft proposes the next K tokens of a row. One forward pass over K + 1 positions draws
each of them as always, with the noise of its own position, and those that the draft had
right are kept: the tokens are those without drafts, and a decode step gives 1 to K + 1
of them (section 10 of the project's algorithms; SPEC-RL, arXiv:2509.23232, without its
lenience). Here the tokens are known, so that only the counting is left.

Drafts are what followed the row's last n tokens

    visit       in the same problem's rollouts at its last visit
    siblings    in the same problem's rollouts of this step, as far as they are written
    prompt      in the problem's own text
    both        in visit and siblings, wherever more of them stand; this is what
                rollout/drafts.py does

at the first place, in the order of the rollouts, with shorter ends tried where n tokens
stand nowhere. All rollouts of a group begin together and a decode step moves each. A
rollout's first token comes from its prompt, without a decode step.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

SOURCES = ("visit", "siblings", "prompt", "both")
_ORDER = {"both": ("visit", "siblings")}


@dataclasses.dataclass(frozen=True)
class Group:
    """The rollouts of one problem in one step, as token ids."""

    problem: str
    step: int
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class Count:
    """Sums over rollouts."""

    tokens: int = 0  # but each rollout's first
    row_steps: int = 0  # decode steps, of each row for itself
    longest_tokens: int = 0  # of each group's longest rollout
    longest_steps: int = 0  # likewise: what a loop waits for

    def add(self, other: "Count") -> None:
        """Add another's sums to these."""
        for field in dataclasses.fields(self):
            both = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, both)


class _Index:
    """What followed each end of at most n tokens, at its first place."""

    def __init__(self, n: int):
        self._n = n
        self._after: dict[tuple[int, ...], tuple[list[int], int]] = {}

    def extend(self, tokens: list[int], begin: int) -> None:
        """Take in a sequence from `begin` on, which stays the caller's and may grow."""
        for at in range(max(begin, 1), len(tokens)):
            for n in range(1, min(self._n, at) + 1):
                self._after.setdefault(tuple(tokens[at - n : at]), (tokens, at))

    def draft(self, tokens: Sequence[int], k: int) -> tuple[int, Sequence[int]]:
        """How many of the last tokens stand there, and at most k that followed them."""
        for n in range(min(self._n, len(tokens)), 0, -1):
            place = self._after.get(tuple(tokens[-n:]))
            if place:
                source, at = place
                return n, source[at : at + k]
        return 0, ()


def steps_of(
    group: Group,
    last: Group | None,
    *,
    source: str,
    n: int,
    k: int,
    kept: int | None = None,
) -> Count:
    """The decode steps of one group with drafts of at most k tokens.

    last: the problem's group at its last visit; None: there is none. source: one of
    SOURCES. n: tokens that are looked up, at most. kept: of the last visit only so many
    rollouts are known, as with rollout.drafts_kept; None: all.
    """
    indices = {name: _Index(n) for name in SOURCES[:3]}
    prompt = list(group.prompt)
    indices["prompt"].extend(prompt, 0)
    # A response begins behind its prompt's end, which is looked up as well.
    end = prompt[-n:]
    if last:
        for response in last.responses[:kept]:
            indices["visit"].extend([*end, *response], len(end))
    names = _ORDER.get(source, (source,))
    written = [[*end, *response[:1]] for response in group.responses]
    if "siblings" in names:
        for row in written:
            indices["siblings"].extend(row, len(end))
    steps = [0] * len(written)
    live = [row for row, response in enumerate(group.responses) if response[1:]]
    while live:
        grown = []
        for row in live:
            response, own = group.responses[row], written[row]
            done = len(own) - len(end)
            matches = [indices[name].draft(own, k) for name in names if k]
            # The first of those that match most.
            _, draft = max(matches, key=lambda match: match[0], default=(0, ()))
            right = 0
            # The token after the last right one is drawn in the same pass.
            for proposed, drawn in zip(draft, response[done:-1]):
                if proposed != drawn:
                    break
                right += 1
            steps[row] += 1
            grown.append((row, response[done : done + right + 1]))
        # All rows of a step are drawn before any of them can be looked up.
        for row, tokens in grown:
            before = len(written[row])
            written[row].extend(tokens)
            if "siblings" in names:
                indices["siblings"].extend(written[row], before)
        live = [
            row
            for row in live
            if len(written[row]) - len(end) < len(group.responses[row])
        ]
    lengths = [len(response[1:]) for response in group.responses]
    return Count(sum(lengths), sum(steps), max(lengths), max(steps))


def simulate(
    groups: Iterable[Group],
    *,
    source: str,
    n: int,
    k: int,
    kept: int | None = None,
    visits: int = 6,
) -> dict[int, Count]:
    """Counts by the number of a problem's visit, from 1; later ones count as `visits`.

    groups: in the order of their steps. The rest is as `steps_of` has it.
    """
    last: dict[str, tuple[int, Group]] = {}
    counts: dict[int, Count] = defaultdict(Count)
    for group in groups:
        number, before = last.get(group.problem, (0, None))
        number += 1
        counts[min(number, visits)].add(
            steps_of(group, before, source=source, n=n, k=k, kept=kept)
        )
        last[group.problem] = number, group
    return dict(sorted(counts.items()))


# The fields of a dump's row that `groups_of` reads.
NEEDS = ("id", "prompt", "response", "truncated")


def groups_of(rows: Iterable[Mapping], tokenizer) -> list[Group]:
    """The groups of a dump's rows, with the texts as the tokenizer's ids.

    Text is encoded anew, which may give other tokens than were written, seldom. A
    response that was not cut ends with the end token.
    """
    texts = defaultdict(list)
    for row in rows:
        texts[row["step"], row["id"]].append(row)
    groups = []
    for (step, problem), members in sorted(texts.items(), key=lambda x: x[0][0]):
        prompt = members[0]["prompt"]
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            (ids,) = tokenizer.encode_chats([prompt])
        responses = tokenizer.encode_batch(
            [row["response"] for row in members], continued=True
        )
        ends = [() if row["truncated"] else (tokenizer.eos_id,) for row in members]
        groups.append(
            Group(
                problem=problem,
                step=step,
                prompt=tuple(ids),
                responses=tuple((*x, *end) for x, end in zip(responses, ends)),
            )
        )
    return groups


def gain(
    tokens_a_step: float, *, compute: float, memory: float, k: int, interconnect=0.0
) -> float:
    """How many times quicker generation is with drafts of k tokens, by its bound.

    compute, memory, interconnect: seconds that generation takes at least without
    drafts, each for itself, as the compile report has them. A pass over k + 1 positions
    of each row multiplies FLOPs and what devices send, and reads weights and cache
    once.
    """
    before = max(compute, memory, interconnect)
    after = max(compute * (k + 1), memory, interconnect * (k + 1)) / tokens_a_step
    return before / after
