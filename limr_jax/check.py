"""Settings that cannot work, refused by name before anything is loaded."""

from limr_jax import console
from limr_jax.config import limits
from limr_jax.config.config_file import leaves
from limr_jax.errors import InputError
from limr_jax.learner.advantages import ALGORITHMS, Algorithm, normaliser
from limr_jax.learner.field_limits import check_fields
from limr_jax.models import lora
from limr_jax.rewards import host
from limr_jax.samplers.allocation import ALLOCATIONS, largest_group
from limr_jax.samplers.from_config import SAMPLERS, SamplerRow, group_filter


def check(config) -> None:
    """Refuse settings of launch/tpu.py that are wrong whatever the data and machine.

    Raises:
      InputError: a field is out of its limits, or fields do not go together.
    """
    # First: below, values are looked up in tables and compared as numbers.
    check_fields(config)
    algorithm = ALGORITHMS[config.algorithm]
    _check_names(config)
    _check_optimizer(config.optimizer)
    if config.group_size == 1 and algorithm.needs_group:
        raise InputError(
            f"algorithm={config.algorithm} compares the rollouts of a group, but "
            "group_size=1; raise it or take reinforce_pp"
        )
    _check_filter(config, algorithm)
    _check_clip(config.clip)
    _check_mismatch(config)
    _check_reward(config, algorithm)
    _check_kl(config.kl)
    _check_critic(config, algorithm)
    sampler = SAMPLERS[config.sampler.name]
    _check_jepo(config, algorithm, sampler)
    _check_sampler(config, algorithm, sampler)
    _check_allocation(config, algorithm)
    lora.check_section(config.model)


def check_fine_tuning(config) -> None:
    """Refuse settings of launch/sft.py that are wrong whatever the data and machine.

    Raises:
      InputError: a field is out of its limits, or fields do not go together.
    """
    limits.check(leaves(config.to_dict()))
    _check_names(config)
    _check_optimizer(config.optimizer)
    lora.check_section(config.model)


def _check_names(config) -> None:
    for name, value in (
        ("tokenizer", config.tokenizer),
        ("data.train", config.data.train),
    ):
        if not value:
            raise InputError(f"{name} is empty; give --config.{name}=…")


def _check_optimizer(optimizer) -> None:
    if 0 < optimizer.decay_steps <= optimizer.warmup_steps:
        raise InputError(
            f"optimizer.decay_steps={optimizer.decay_steps} must be more than "
            f"optimizer.warmup_steps={optimizer.warmup_steps}, which it counts in; 0 "
            "is no decay"
        )


def _check_filter(config, algorithm: Algorithm) -> None:
    """The filter of a group's advantages leaves something where they differ most."""
    if config.kl.coefficient and config.kl.placement == "reward":
        return  # a penalty is added behind the bound, and may be of any size
    tau, group = config.filter.tau, largest_group(config)
    groups = f"group_size={group}"
    if group != config.group_size:
        groups = f"groups of up to {group} (allocation.most)"
    # |A| ≤ tau is dropped, and no |A| of GRPO in a group of G is above (G − 1) / √G.
    largest = algorithm.largest(group)
    if tau >= largest:
        raise InputError(
            f"filter.tau={tau} with algorithm={config.algorithm} and "
            f"{groups} drops every rollout: no advantage is above "
            f"{largest:.4g}; lower it, or -1 for none"
        )


def _check_clip(clip) -> None:
    if 0 < clip.dual <= 1:
        raise InputError(
            f"clip.dual={clip.dual} takes the gradient of each token of a negative "
            "advantage whose ratio is above it, so it must be above 1; 3 is usual, 0 "
            "is off"
        )


def _check_mismatch(config) -> None:
    """Without a recomputation w is the ratio: of one update, and of each token."""
    correction = config.mismatch.correction
    if correction == "none" or config.mismatch.recompute:
        return
    updates = config.minibatches_per_step * config.updates_per_minibatch
    if updates > 1:
        raise InputError(
            f"mismatch.correction={correction} with {updates} updates a step "
            "(minibatches_per_step x updates_per_minibatch): their ratios hold what "
            "the policy has moved as well; set mismatch.recompute=True"
        )
    if config.loss != "clip":
        raise InputError(
            f"mismatch.correction={correction} with loss={config.loss}, which has no "
            "ratio of a token as its factor; set mismatch.recompute=True"
        )


def warn_of_filters(rollout) -> None:
    """Warn on stderr where training draws from some of the tokens only.

    rollout: the section `rollout` of the config.
    """
    off = {"top_p": 1, "top_k": 0, "min_p": 0}
    filters = [
        f"rollout.{name}={rollout[name]}" for name in off if rollout[name] != off[name]
    ]
    if filters:
        console.warn(
            f"{', '.join(filters)} in training: tokens are drawn from a "
            "filtered policy, but log-probabilities and gradients are of the whole "
            "one, which is evaluated (at top_p=.8 the gradient's cosine with the right "
            "one was .914); without a filter both are the same policy"
        )


def warn_of_old_names(config) -> None:
    """Warn on stderr of a name that the next version will not know."""
    name = config.sampler.name
    if groups := SAMPLERS[name].groups:
        console.warn(
            f"sampler.name={name} goes with the next version; write "
            f"--config.sampler.name=uniform --config.filter.groups={groups}, which is "
            "the same"
        )


def _check_reward(config, algorithm: Algorithm) -> None:
    """What is for rewards graded on the hosts only, and how these are named."""
    weights = {}
    if config.reward not in ("token", "none"):
        weights = host.parse_spec(config.reward)  # InputError: it cannot be read
    below = ["reward=limr"] * ("limr" in weights)
    below += [f"a weight of {x:g} in reward" for x in weights.values() if x < 0]
    below += [f"overlong.buffer={config.overlong.buffer}"] * (
        config.overlong.buffer > 0
    )
    if algorithm.divides_by_reward and below:
        raise InputError(
            f"algorithm={config.algorithm} divides by a group's mean reward, and with "
            f"{below[0]} it may be below 0; take reward=math and overlong.buffer=0"
        )
    if config.reward in ("token", "none") and config.overlong.buffer:
        raise InputError(
            f"overlong.buffer={config.overlong.buffer} with reward={config.reward}: "
            "the penalty is for rewards graded on the hosts; set it to 0"
        )
    if config.reward in ("token", "none") and config.judge.init:
        raise InputError(
            f"judge.init={config.judge.init} with reward={config.reward}, which asks "
            "no judge; leave it empty, or take reward=math"
        )
    if config.judge.dtype != "auto" and not config.judge.init:
        raise InputError(
            f"judge.dtype={config.judge.dtype} without judge.init, so that there is no "
            "judge; name its checkpoint, or take judge.dtype=auto"
        )


def _check_kl(kl) -> None:
    # Of k1 = log π/π_ref the gradient is ∇log π, whose mean under π is 0.
    if (kl.estimator, kl.placement) == ("k1", "loss"):
        raise InputError(
            "kl.estimator=k1 with kl.placement=loss has no gradient in expectation; "
            "take k2 or k3, or kl.placement=reward"
        )
    # A KL in the reward brings E[k ∇log π]. With k1 that is the KL's own gradient; k2
    # and k3 are of second order near the reference.
    if kl.placement == "reward" and kl.estimator in ("k2", "k3"):
        raise InputError(
            f"kl.estimator={kl.estimator} with kl.placement=reward has near the "
            "reference .5 to 6 % of the KL's gradient, and may point the other way; "
            "take k1, or kl.placement=loss"
        )
    if kl.target and not kl.coefficient:
        raise InputError(
            f"kl.target={kl.target} with kl.coefficient=0: there is no KL to adapt; "
            "give the first coefficient, or kl.target=0"
        )
    if kl.reset_every and not kl.coefficient:
        raise InputError(
            f"kl.reset_every={kl.reset_every} with kl.coefficient=0: there is no "
            "reference to reset; give a coefficient, or kl.reset_every=0"
        )


def _check_critic(config, algorithm: Algorithm) -> None:
    critic = config.critic
    if not algorithm.needs_critic:
        if critic.learning_rate:
            raise InputError(
                f"critic.learning_rate={critic.learning_rate} with "
                f"algorithm={config.algorithm}, which has no critic; take ppo, or 0"
            )
        if critic.pretrain_steps:
            raise InputError(
                f"critic.pretrain_steps={critic.pretrain_steps} with "
                f"algorithm={config.algorithm}, which has no critic; take ppo, or 0"
            )
        return
    if critic.pretrain_steps >= config.num_steps:
        raise InputError(
            f"critic.pretrain_steps={critic.pretrain_steps} leaves none of "
            f"num_steps={config.num_steps} to the policy; lower it"
        )
    if critic.bootstrap_truncated and config.rollout.max_response_length == 1:
        raise InputError(
            "critic.bootstrap_truncated=True with rollout.max_response_length=1: a "
            "response that is cut has no token before its last; raise it"
        )
    if critic.learning_rate <= 0:
        raise InputError(
            f"critic.learning_rate={critic.learning_rate}: "
            f"algorithm={config.algorithm} learns a critic, so it must be above 0"
        )
    if config.filter.tau >= 0:
        raise InputError(
            f"filter.tau={config.filter.tau} with algorithm={config.algorithm}: the "
            "filter drops rollouts by their one advantage, and a critic gives each "
            "token its own; set filter.tau=-1"
        )


def _check_jepo(config, algorithm: Algorithm, sampler: SamplerRow) -> None:
    jepo, ungraded = algorithm.learns_answers, config.reward == "none"
    if ungraded and algorithm.needs_verifier:
        raise InputError(
            f"reward=none with algorithm={config.algorithm}, which learns from "
            "rewards; take algorithm=jepo or another reward"
        )
    if ungraded and not sampler.draws_without_rewards:
        raise InputError(
            f"sampler.name={config.sampler.name} with reward=none: there are no "
            "rewards to draw by; take uniform"
        )
    if config.jepo.semi_verifiable and (ungraded or not jepo):
        raise InputError(
            f"jepo.semi_verifiable=True with algorithm={config.algorithm}, "
            f"reward={config.reward}: it needs jepo and a verifier; set it to False"
        )
    # (field, whether it asks for what JEPO has no place for, remedy)
    for name, wrong, remedy in (
        ("filter.tau", config.filter.tau >= 0, "set it to -1"),
        ("mask_truncated", config.mask_truncated, "set it to False"),
        ("loss", config.loss != "clip", "take clip"),
        ("mismatch.recompute", config.mismatch.recompute, "set it to False"),
        ("mismatch.correction", config.mismatch.correction != "none", "take none"),
        ("loss_normaliser", config.loss_normaliser == "sequence", "take rollout"),
        (
            "kl.placement",
            config.kl.coefficient and config.kl.placement == "reward",
            "take loss",
        ),
    ):
        if jepo and wrong:
            # "kl.placement" stands in a section, "mask_truncated" in none.
            section, _, field = name.rpartition(".")
            value = config[section][field] if section else config[field]
            raise InputError(
                f"{name}={value} with algorithm={config.algorithm}, whose gradients of "
                f"thought and answer go together and have no such thing; {remedy}"
            )


def _check_sampler(config, algorithm: Algorithm, sampler: SamplerRow) -> None:
    """What does not go together, or leaves nothing to learn from."""
    name, scores = config.sampler.name, config.sampler.lim.scores
    if scores and name != "lim":
        raise InputError(
            f"sampler.lim.scores={scores} with sampler.name={name}, which draws by no "
            "scores; take sampler.name=lim, or leave the scores empty"
        )
    if sampler.needs_group and config.group_size == 1:
        raise InputError(
            f"sampler.name={name} with group_size=1 draws by how likely the rollouts "
            "of a group differ, and one does not; raise it or take uniform"
        )
    if config.sampler.unbiased:
        _check_unbiased(config, algorithm, sampler)
    if group_filter(config) != "none":
        _check_group_filter(config, algorithm, sampler)


def _check_unbiased(config, algorithm: Algorithm, sampler: SamplerRow) -> None:
    """What has no known chance of a draw, or is no mean over problems."""
    name, section = config.sampler.name, config.sampler
    divided_by = normaliser(config.loss_normaliser, config.algorithm, config.loss)
    # (field, whether it leaves the estimate biased, why and the remedy)
    known = ", ".join(x for x, row in SAMPLERS.items() if row.known_chance)
    for field, wrong, why in (
        (
            f"sampler.name={name}",
            not sampler.known_chance,
            f"whose draws have no known probability; take one of {known}",
        ),
        (
            f"sampler.{name}.floor=0",
            "floor" in sampler.own and section[name].floor == 0,
            "which may draw some problems never; give a floor above 0",
        ),
        (
            "filter.groups=mixed",
            group_filter(config) != "none",
            "which keeps groups by what came of them; take filter.groups=none",
        ),
        (
            f"algorithm={config.algorithm}",
            algorithm.over_problems,
            "whose advantages compare the problems of a step; take grpo, dr_grpo or "
            "rloo",
        ),
        (
            f"loss_normaliser={divided_by}",
            divided_by == "token",
            "which divides by the tokens of whatever was drawn; take sequence, rollout "
            "or constant",
        ),
        (
            "filter.normaliser=kept",
            config.filter.tau >= 0 and config.filter.normaliser == "kept",
            "which divides by the rows that are left; take all",
        ),
    ):
        if wrong:
            raise InputError(f"sampler.unbiased=True with {field}, {why}")


def _check_group_filter(config, algorithm: Algorithm, sampler: SamplerRow) -> None:
    """What leaves a filter of groups nothing to keep, or keeps the wrong ones."""
    field = f"filter.groups={config.filter.groups}"
    if sampler.groups:
        field = f"sampler.name={config.sampler.name}"
    if algorithm.learns_answers:
        raise InputError(
            f"{field} with algorithm={config.algorithm} drops the groups without a "
            "right response, which JEPO is for; take filter.groups=none"
        )
    if shaped := host.shaped_first(config.reward):
        raise InputError(
            f"{field} with reward={config.reward}: groups are kept by raw correctness, "
            f"which comes from the first, and {shaped} shapes a reward; put the "
            "verifier (math, limr, judge or your own) first"
        )
    if config.group_size == 1:
        raise InputError(
            f"{field} with group_size=1 keeps nothing, as one rollout does not vary; "
            "raise it"
        )


def _check_allocation(config, algorithm: Algorithm) -> None:
    """A step's budget can be divided, and by what comes of the rollouts."""
    section, group = config.allocation, config.group_size
    row = ALLOCATIONS[section.name]
    if row.make is None:
        return
    field, most = f"allocation.name={section.name}", largest_group(config)
    own = section[section.name]
    shaped = host.shaped_first(config.reward)
    # (whether it cannot work, why and the remedy)
    for wrong, why in (
        (
            algorithm.learns_answers or config.reward == "none",
            f"with algorithm={config.algorithm} and reward={config.reward}: rollouts "
            "are given out by which are right; take fixed, or an algorithm and a "
            "reward that say so",
        ),
        (
            shaped,
            f"with reward={config.reward}: rollouts are given out by raw correctness, "
            f"which comes from the first, and {shaped} shapes a reward; put the "
            "verifier (math, limr, judge or your own) first",
        ),
        (
            group == 1,
            "with group_size=1 has nothing to give out, as a group needs two rollouts "
            "that differ; raise it",
        ),
        (
            most % group or most < group,
            f"with allocation.most={section.most} rollouts of a problem must be a "
            f"multiple of group_size={group}, the mean of all; 0 is 4 x that",
        ),
        (
            own.get("least", 0) > group,
            f"with allocation.knapsack.least={own.get('least')} rollouts of each "
            f"problem is above group_size={group}, the mean of all; lower it",
        ),
        (
            own.get("per_round", 0) > group,
            f"with allocation.ada.per_round={own.get('per_round')} rollouts in the "
            f"first round is above group_size={group}, the mean of all rounds; lower "
            "it",
        ),
        (
            own.get("taken", 0) > most,
            f"with allocation.ada.taken={own.get('taken')} is above the {most} "
            "rollouts that a problem may have (allocation.most); lower it",
        ),
        (
            row.rounds and group_filter(config) != "none",
            "with filter.groups=mixed: both go on in rounds, ada until a problem has "
            "both outcomes; take filter.groups=none",
        ),
        (
            row.rounds and config.sampler.unbiased,
            "with sampler.unbiased=True: when a problem leaves depends on what came of "
            "it, so its gradient has no known bias; take knapsack, or False",
        ),
        (
            config.sampler.unbiased and own.get("weigh") == "rollouts",
            "with sampler.unbiased=True weighs problems by their rollouts; set "
            "allocation.knapsack.weigh=problems",
        ),
    ):
        if wrong:
            raise InputError(f"{field} {why}")


def check_batch(config, mesh) -> None:
    """Refuse a batch, slots or micro-batches that the mesh does not divide.

    Raises:
      InputError: the field, its value and what it must be a multiple of.
    """
    # Rows lie over data and fsdp; the devices along tensor share theirs.
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    # With an allocation a problem has a row for each rollout that it may get.
    group = largest_group(config)
    rows = config.prompts_per_step * group
    # Whole prompts a device: a rollout reads its prompt where that was prefilled.
    if config.prompts_per_step % devices:
        raise InputError(
            f"prompts_per_step={config.prompts_per_step} does not divide over "
            f"data x fsdp = {devices} devices; use a multiple of {devices}"
        )
    # Likewise of each call of generate, which gets as many prompts as any other.
    calls = config.rollout.calls
    if config.prompts_per_step % (calls * devices):
        raise InputError(
            f"rollout.calls={calls} must divide the "
            f"{config.prompts_per_step // devices} problems that each of {devices} "
            "devices has of a step; 1 is one generation for all"
        )
    columns = config.rollout.max_prompt_length + config.rollout.max_response_length
    if rows * columns >= 2**31:
        raise InputError(
            f"prompts_per_step={config.prompts_per_step} x group_size={group} (or "
            f"allocation.most) rollouts of {columns} tokens are {rows * columns:,}, "
            "and a step's tokens are counted in int32: below 2,147,483,648; lower one "
            "of them"
        )
    slots = config.rollout.slots
    if slots % devices:
        raise InputError(
            f"rollout.slots={slots} must be a multiple of data x fsdp = {devices} "
            "devices, which have as many each; 0 is all of the step's rollouts"
        )
    # Rollouts are counted, not prompts: a minibatch may be smaller than a group. Those
    # that are written, not the rows for them: a minibatch should have one to learn.
    minibatches = config.minibatches_per_step
    rollouts = config.prompts_per_step * config.group_size
    if rollouts % (minibatches * devices):
        raise InputError(
            f"minibatches_per_step={minibatches} must divide the {rollouts // devices} "
            f"rollouts that each of {devices} devices has of a step"
        )
    if config.row_responses > config.group_size:
        raise InputError(
            f"row_responses={config.row_responses} must be from 1 to group_size="
            f"{config.group_size}: a row has room for so many answers to a prompt"
        )
    _check_micro_batch(
        config, rows=rows // minibatches, devices=devices, name="rollouts"
    )


def check_rows(config, mesh) -> None:
    """Refuse fine-tuning's rows or micro-batches that the mesh does not divide.

    Raises:
      InputError: the field, its value and what it must be a multiple of.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.rows % devices:
        raise InputError(
            f"rows={config.rows} does not divide over data x fsdp = {devices} "
            f"devices; use a multiple of {devices}"
        )
    _check_micro_batch(config, rows=config.rows, devices=devices, name="packed rows")


def _check_micro_batch(config, rows: int, devices: int, name: str) -> None:
    # 0: one micro-batch of all rows.
    micro = config.micro_batch_rows or rows
    if micro % devices or rows % micro:
        raise InputError(
            f"micro_batch_rows={micro} must divide the {rows} {name} of an update "
            f"and be a multiple of {devices}, the devices that share the batch"
        )
