"""Every field of a run, with its unit and default. The other configs say what differs.

What each may be: limr_jax/config/limits.py, and the tables of algorithms and samplers
for what these own (limr_jax/learner/field_limits.py). A new
field takes three files: its default here, its row there, and the function that reads
it. Whole sections are handed on (`checkpoint`, `clip`, `dump`, `mesh`, `optimizer`),
and so are the numbers that an algorithm or a sampler has of its own.

python launch/tpu.py --config configs/tiny.py --config.seed=1
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults; `tokenizer`, `data.train` and `model` are for a config to give."""
    c = ConfigDict()
    c.seed = 0  # of everything random; see limr_jax/prng.py
    c.num_steps = 100  # steps; one generation each. The only field that may grow later
    c.prompts_per_step = 32  # P, problems drawn a step
    c.group_size = 8  # G, rollouts a problem

    c.data = ConfigDict()
    c.data.train = ""  # 'name:split[a:b]' of a TFDS builder, or 'file.jsonl[a:b]'
    c.data.eval = ""  # likewise, held out; empty: no evaluation
    c.data.too_long = "leave_out"  # or 'refuse': prompts over rollout.max_prompt_length
    c.data.cache_dir = "~/.cache/limr_jax"  # where TFDS prepares its sets
    c.data.manual_dir = ""  # folder with files of public sets; empty: downloads
    c.data.allow_overlap = False  # train although held-out problems are in the set

    c.tokenizer = ""  # directory or file: tokenizer.model or tokenizer.json

    c.model = ConfigDict()
    c.model.init = "random"  # or a checkpoint's directory (config.json, *.safetensors)
    c.model.architecture = "qwen2"  # model_type of a random model
    # Of limr_jax/models/presets.py: the published dimensions that a checkpoint must
    # have, and a random model has. --compile_only then needs no checkpoint.
    c.model.preset = ""
    # The dimensions of a random model. For a checkpoint 0 is what its config.json says,
    # and anything else must agree with it.
    c.model.vocab_size = 0  # 0, random: the tokenizer's, rounded up to 128
    c.model.width = 0
    c.model.layers = 0
    c.model.heads = 0
    c.model.kv_heads = 0
    c.model.head_dim = 0  # channels a head
    c.model.mlp_width = 0
    # Tokens of prompt and response together. For a checkpoint more than it was trained
    # for must be said here; a random model has no such limit.
    c.model.max_length = 0
    c.model.dtype = "auto"  # of compute: 'bfloat16', 'float32'; auto: fp32 on CPU only
    c.model.remat = False  # keep only each layer's input for the backward pass
    # On a TPU its kernels where they fit and, at the start of the run, agree with XLA's
    # attention; or 'xla'; or 'splash', 'ragged': likewise, but a run in which that
    # kernel (of the learner, of decode) cannot be taken ends.
    c.model.attention = "auto"

    # Adapters beside a base that is frozen (arXiv:2106.09685): they alone are learned
    # and kept in checkpoints. The reference is the base without them (or with those of
    # kl.reset_every), and PPO's critic has its own beside it.
    c.model.base_dtype = "float32"  # of the frozen base; 'bfloat16', 'int8'; LoRA only
    c.model.lora = ConfigDict()
    c.model.lora.rank = 0  # 0: no adapters, all parameters are learned
    c.model.lora.alpha = 32.0  # what they give is multiplied by alpha / rank
    c.model.lora.scaling = "plain"  # or 'rs': by alpha / sqrt(rank) (arXiv:2312.03732)
    c.model.lora.targets = "q,k,v,o,gate,up,down"  # or some of them
    # PEFT's directory (adapter_config.json, adapter_model.safetensors) to begin from;
    # empty: A is normal and B zero, so that the policy begins as the base.
    c.model.lora.init = ""

    c.mesh = ConfigDict()  # devices along each axis; one axis may be -1, the rest
    c.mesh.data = -1  # rows of the batch
    c.mesh.fsdp = 1  # rows of the batch, and parameters
    c.mesh.tensor = 1  # heads, feed-forward, vocabulary

    c.slice = ConfigDict()  # what --compile_only compiles for
    c.slice.type = (
        ""  # as gcloud names it: 'v4-32'; limr_jax/compilation/slices.py has all
    )
    # Where the problems or the tokenizer are not on this machine, stand-ins: prompts
    # of rollout.max_prompt_length.
    c.slice.problems = 0  # problems of data.train, and of data.eval if there is one
    c.slice.answer_length = 0  # tokens of the longest reference answer

    c.sampler = ConfigDict()
    # Or 'lim', 'cdas', 'prioritized', 'informative', 'mopps', 'bots', 'dps',
    # 'greso', 'curriculum', 'adarft'; 'dynamic' is an old name of filter.groups=mixed.
    c.sampler.name = "uniform"
    # A drawn problem's loss weighs 1 / (N x its chance at each of the P places): the
    # mean gradient is that of all N problems, each as often. With a sampler whose
    # chances are known: 'uniform', 'lim', 'prioritized', 'informative'.
    c.sampler.unbiased = False
    c.sampler.lim = ConfigDict()
    c.sampler.lim.warmup_epochs = 1  # epochs that visit every problem once; at least 1
    # File of {"id", "lim_score"} lines (launch/lim.py writes it): its weights hold from
    # the first step on, without a warm-up. Empty: the run's own scores, as it goes.
    c.sampler.lim.scores = ""
    c.sampler.lim.weights = "threshold"  # or 'softmax'
    c.sampler.lim.threshold = 0.6  # score from which a problem has weight 1
    c.sampler.lim.temperature = 0.1  # of softmax weights, in units of the score
    c.sampler.lim.floor = 0.05  # least weight of any problem, 0 to 1
    c.sampler.cdas = ConfigDict()  # difficulty as the competence (arXiv:2505.17652)
    c.sampler.cdas.weights = "paper"  # or 'code': a first visit weighs 1, or 1/2
    c.sampler.prioritized = ConfigDict()  # by 1 - pass rate so far (Kimi k1.5)
    c.sampler.prioritized.floor = 0.0  # least weight of a solved problem, 0 to 1
    # By the chance that a group has a right and a wrong response (marin #8765).
    c.sampler.informative = ConfigDict()
    c.sampler.informative.decay = 0.9  # of what was seen, a visit; 1: forgets nothing
    c.sampler.informative.floor = 0.01  # least weight of any problem, 0 to 1
    c.sampler.mopps = ConfigDict()  # pass rates by Thompson draws (arXiv:2507.04632)
    c.sampler.mopps.pool = 8  # candidates, in batches of prompts_per_step
    c.sampler.mopps.target = 0.5  # pass rate to be near
    c.sampler.mopps.decay = 0.5  # of what was seen, a visit; 1: nothing is forgotten
    c.sampler.mopps.prior = 1.0  # pseudo-count of right, and of wrong, responses
    # MoPPS, and what a batch says of the problems that it lacks (arXiv:2510.26374).
    c.sampler.bots = ConfigDict()
    c.sampler.bots.pool = 0  # candidates, in batches of prompts_per_step; 0: all
    c.sampler.bots.target = 0.5  # pass rate to be near
    c.sampler.bots.decay = 0.9  # of what was seen, a step (or a round: filter.groups)
    c.sampler.bots.prior = 1.0  # pseudo-count of right, and of wrong, responses
    c.sampler.bots.rho = 0.1  # weight of what no rollout of a problem says; 0: MoPPS
    c.sampler.dps = ConfigDict()  # a hidden Markov model a problem (arXiv:2603.10887)
    c.sampler.dps.decay = 0.7  # of the counted changes of state, a step or round
    c.sampler.dps.prior = 1.0  # pseudo-count of each change
    c.sampler.greso = ConfigDict()  # skips what never varies (arXiv:2506.02177)
    c.sampler.greso.floor = 0.01  # least probability of a draw at a problem's turn
    c.sampler.greso.target_right = 0.25 / 3  # share of all-right groups to be held
    c.sampler.greso.target_wrong = 0.5 / 3  # likewise of all-wrong groups
    c.sampler.greso.step = 0.01  # by which a step moves the exploration
    c.sampler.curriculum = ConfigDict()  # uniform, then only hard problems
    c.sampler.curriculum.column = "level"  # of the data set: a number a problem
    c.sampler.curriculum.start = 0  # steps of all problems before the minimum holds
    c.sampler.curriculum.minimum = 4.0  # least level from then on
    c.sampler.adarft = ConfigDict()  # nearest to a moving target (arXiv:2504.05520)
    c.sampler.adarft.column = "difficulty"  # of the data set: 0 to 100, easy to hard
    c.sampler.adarft.target = 0.0  # the first target difficulty
    c.sampler.adarft.beta = 0.5  # mean reward to be held
    c.sampler.adarft.alpha = 2.0  # how sharply the reward acts
    c.sampler.adarft.eta = 50.0  # largest move of the target a step

    # How many rollouts each drawn problem gets: 'fixed' is group_size, and the others
    # divide the step's prompts_per_step x group_size among its problems.
    c.allocation = ConfigDict()
    c.allocation.name = "fixed"  # or 'knapsack', 'ada'
    # Rollouts a problem at most, a multiple of group_size; 0: 4 x group_size.
    c.allocation.most = 0
    # Before the rollouts, by what is believed of each pass rate (arXiv:2509.25849).
    c.allocation.knapsack = ConfigDict()
    c.allocation.knapsack.least = 2  # rollouts of each problem; at least 2
    c.allocation.knapsack.decay = 0.5  # of what was seen, a visit; 1: forgets nothing
    # A problem's loss weighs as many as its 'rollouts', or as any other's: 'problems'.
    c.allocation.knapsack.weigh = "rollouts"
    # In rounds, until a problem has said enough (arXiv:2510.04996).
    c.allocation.ada = ConfigDict()
    c.allocation.ada.rounds = 4  # generations a step, at most
    c.allocation.ada.per_round = 4  # rollouts of an open problem in each but the last
    c.allocation.ada.taken = 4  # rollouts of a problem that are learned, at most
    # When a problem leaves: with half of `taken` of each outcome ('balance'), or with
    # one right rollout ('positive').
    c.allocation.ada.exit = "balance"

    c.rollout = ConfigDict()
    c.rollout.temperature = 1.0  # above 0
    # A filter makes the policy that writes another one than is learned and evaluated.
    c.rollout.top_p = 1.0  # 1: off
    c.rollout.top_k = 0  # tokens; 0: off
    c.rollout.min_p = 0.0  # share of the best token's probability; 0: off
    c.rollout.max_prompt_length = 256  # tokens
    c.rollout.max_response_length = 256  # tokens, the end token included
    # Rows of the cache, refilled as rollouts end; 0: one for each rollout of the step.
    c.rollout.slots = 0
    # Times that the last live rows move into fewer slots, 0 to 6: less waste, and a
    # loop more to compile.
    c.rollout.compactions = 6
    # Tokens at most that a decode step tries beside a row's next one, as the problem's
    # other rollouts have them; no rollout changes. As many as pay for so many rows. 0:
    # none. It takes problems visited again, and a chip that waits for its memory: on
    # two cores it costs more than it saves (limr_jax/rollout/RECORDS.md).
    c.rollout.drafts = 0
    c.rollout.drafts_kept = 8  # of each problem's last rollouts, in the state
    # Generations a step, one after another; 1: preemptive sampling (arXiv:2505.17218).
    # Of several the hosts grade one while the devices write the next. Trainers that
    # generate for each micro-batch have rollouts / micro_batch_rows.
    c.rollout.calls = 1

    # 'token': in-graph comparison of the answer's tokens; 'none': with jepo alone, and
    # held-out problems as 'token'. Else graded on the hosts:
    # 'math', 'limr' (+1, -0.5, -1), 'judge' (a model's opinion), or
    # package.module.function of the user's own
    # (prompts, completions, **columns) -> list[float | None]; several with weights as
    # 'math, 0.2*my.module.brevity', the first of which correctness comes from: of a
    # function of yours 1 or more is right, all below is wrong.
    c.reward = "token"
    c.answer_phrase = "#### "  # introduces the answer, for 'token'
    c.grader = ConfigDict()  # of the hosts' worker processes
    c.grader.workers = 0  # processes; 0: as many as cores
    c.grader.wall_seconds = 10.0  # an item's limit; over it the rollout is invalid
    c.grader.cpu_seconds = 5.0  # likewise
    c.grader.memory_mib = 1024  # likewise
    # A causal checkpoint with its tokenizer that says whether an answer is right: all
    # answers with reward=judge; with 'math' and 'limr' those that the rules call wrong.
    c.judge = ConfigDict()
    c.judge.init = ""  # its directory; empty: none
    c.judge.max_length = 2048  # tokens of a question: a longer one has no opinion
    c.judge.rows = 16  # questions at once
    # Of its kernels: 'int8', or that of compute. With LoRA and judge.init as model.init
    # the judge is the frozen base itself, if its numbers are (limr_jax/rewards/README).
    c.judge.dtype = "auto"
    c.overlong = ConfigDict()  # soft penalty of long responses, with graded hosts only
    c.overlong.buffer = 0  # tokens before the limit in which it grows; 0: off
    c.overlong.weight = 1.0  # of the penalty, at most so much off the reward

    # Or 'dr_grpo', 'rloo', 'rloo_normalised' (in JEPO's paper), 'maxrl',
    # 'reinforce_pp'; 'ppo' (with a critic), 'jepo' (no verifier).
    c.algorithm = "grpo"
    # What an advantage weighs: each token's ratio, clipped as PPO does ('clip'); its
    # whole response's ('gspo'); or log-probabilities, by clipped ratios ('cispo').
    c.loss = "clip"
    # The loss is a mean over tokens ('token'), or over each 'sequence' and then all; a
    # sum over learned rows × longest allowed ('constant'), or over learned rows
    # ('rollout'). Empty: as in the loss's paper ('sequence' for gspo, 'token' for
    # cispo), or in the algorithm's: 'sequence' for grpo, 'constant' for dr_grpo,
    # 'rollout' for rloo, maxrl and jepo, 'token' for reinforce_pp and ppo.
    c.loss_normaliser = ""
    c.mask_truncated = False  # leave truncated rollouts out of the loss
    c.clip = ConfigDict()
    # The papers' own: gspo 3e-4 and 4e-4; cispo 1 (no lower bound) and, in ScaleRL, 4.
    c.clip.low = 0.2  # the ratio's clip, below 1
    c.clip.high = 0.2  # above 1
    # Of clip and gspo: where A < 0, a ratio above it has no gradient; 0: no such bound.
    c.clip.dual = 3.0
    # Rollout and learner may give a token other probabilities, in bf16 or late. How far
    # they are apart is logged always; w is the learner's over the rollout's.
    c.mismatch = ConfigDict()
    # The ratio is to the learner's own log-probabilities before the step, a forward
    # pass more (the reference's, where there is one, walks the same packed rows).
    c.mismatch.recompute = False
    # Tokens are weighed by w, capped ('tis') or masked ('icepop', 'ipo'). Without
    # recompute w is the ratio itself, of a step's one update, with the same bounds, and
    # clip.* acts on it as well.
    c.mismatch.correction = "none"
    c.mismatch.cap = 2.0  # of tis: the largest w
    c.mismatch.low = 0.5  # of icepop: w below it is masked
    c.mismatch.high = 5.0  # of icepop: w above it is masked
    c.mismatch.limit = 0.3  # of ipo: a probability that differs by more is masked
    c.entropy_coefficient = 0.0  # weight of the entropy bonus
    # Optimiser updates a pass, each of other rollouts; 1: exactly on-policy. They are
    # dealt anew for each pass, whole groups where an update has room for them.
    c.minibatches_per_step = 1
    c.updates_per_minibatch = 1  # passes over the step's rollouts
    c.micro_batch_rows = 0  # packed rows a backward pass; 0: rollouts of a minibatch
    # Full-length responses that a packed row has columns for. Above 1 a prompt is read
    # once for several, which pays where most responses are as long as they may be.
    c.row_responses = 1

    c.filter = ConfigDict()  # what is not learned from
    # DASH (arXiv:2505.17218): rollouts dropped before the forward pass, those of
    # |advantage| <= tau; below 0: none.
    c.filter.tau = -1.0
    c.filter.normaliser = "all"  # the loss is divided by all rows, or by those 'kept'
    c.filter.keep_kl = True  # drop none where the loss has a KL or entropy term
    # Dynamic sampling (arXiv:2503.14476), with any sampler: 'mixed' keeps the groups
    # with a right and a wrong response, round after round; 'none' filters none.
    c.filter.groups = "none"
    c.filter.max_rounds = 4  # generations a step until prompts_per_step are kept
    c.filter.max_age = 1  # steps that a group left over may wait: 0 or 1

    c.kl = ConfigDict()
    c.kl.coefficient = 0.0  # 0: no reference model exists
    # 'k1' in the reward, 'k2' or 'k3' in the loss; empty: k1 or k3. In the loss both
    # have the gradient of the KL, whatever the policy that wrote (algorithms/kl.py).
    c.kl.estimator = ""
    c.kl.placement = "loss"  # or 'reward'
    c.kl.target = 0.0  # nats a token that the coefficient adapts to; 0: fixed
    c.kl.gain = 0.1  # then a step changes it by at most 0.2 x gain of itself
    # Steps after which the policy becomes the reference (ProRL); 0: it stays the first.
    c.kl.reset_every = 0

    # Of algorithm=ppo: a copy of the first policy with a value head, its optimiser like
    # the policy's but for the rate.
    c.critic = ConfigDict()
    c.critic.learning_rate = 0.0  # above 0 with ppo, 0 without
    c.critic.gamma = 1.0  # discount of a token, 0 to 1
    c.critic.lam = 0.95  # of generalised advantage estimation, 0 to 1
    c.critic.value_lam = -1.0  # likewise of the critic's own targets; below 0: lam
    # A response cut at the limit is worth the critic's value there, not 0; its last
    # token is then not learned.
    c.critic.bootstrap_truncated = False
    # First steps in which the critic alone is learned, and the policy's loss, gradient
    # and statistics are logged as 0.
    c.critic.pretrain_steps = 0
    c.critic.value_clip = 0.2  # a value's move in a step that is learned from
    c.critic.reward_clip = 10.0  # rewards are clipped to +- this; 0: off
    c.critic.whiten = True  # advantages to mean 0, variance 1 over the step's tokens

    c.jepo = ConfigDict()  # of algorithm=jepo: learns from reference answers
    # Or 'multi_sample', 'one_sample', which force answer_phrase where it is absent.
    c.jepo.estimator = "practical"
    # Weight of the reference answers' own log-probabilities; at 1 multi_sample and
    # one_sample climb their bounds exactly.
    c.jepo.beta_sup = 0.01
    c.jepo.format_penalty = 10.0  # without answer_phrase ('practical'); 0: none
    c.jepo.semi_verifiable = False  # prompts with a right rollout take RLOO's loss

    c.optimizer = ConfigDict()  # AdamW
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_steps = 0  # updates
    c.optimizer.decay_steps = 0  # updates until the cosine's end; 0: constant
    c.optimizer.decay_to = 0.1  # the cosine's end, as a share of the peak
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.99
    c.optimizer.epsilon = 1e-8
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip_norm = 1.0  # global gradient norm; 0: off

    # An update whose loss or gradient is no finite number moves nothing, and counts.
    c.divergence = ConfigDict()
    c.divergence.patience = 3  # steps in a row with such an update that end the run

    # Warnings, each once a run, on stderr and in warnings.jsonl; 0 switches one off.
    # Shares and the entropy are means over 5 steps.
    c.alarms = ConfigDict()
    # Mean |log probability of the learner - of the rollout|, in nats a token, of what
    # this step's policy wrote.
    c.alarms.drift = 0.005  # above it the run warns
    c.alarms.drift_stop = 0.05  # above it the run ends
    c.alarms.flat_steps = 10  # steps in a row in which no group had two rewards
    c.alarms.entropy_share = 0.1  # of the first steps' entropy
    c.alarms.invalid_share = 0.05  # of the rollouts
    c.alarms.truncated_share = 0.3  # of the rollouts

    c.evaluation = ConfigDict()
    c.evaluation.every = 0  # steps; 0: before and after only
    c.evaluation.samples = 8  # responses a problem for pass@k before; 0: none

    c.benchmarks = ConfigDict()  # what launch/evaluate.py does, not the loop
    # Sets as in data.eval, each with its responses a problem and their temperature:
    # 'math500, aime24@4, amc23:test[:20]@4@0.6'. Empty: data.eval.
    c.benchmarks.names = ""
    c.benchmarks.k = 1  # responses a problem where no @ says
    c.benchmarks.temperature = -1.0  # likewise; below 0: 0 where k is 1, else 0.4
    c.benchmarks.top_p = 0.95  # 1: off
    c.benchmarks.max_prompt_length = 0  # tokens; 0: no limit, nothing is left out
    c.benchmarks.max_response_length = 0  # tokens; 0: rollout.max_response_length

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 20  # steps; the last one is always saved
    c.checkpoint.keep = 2  # checkpoints

    # Weights & Biases beside TensorBoard, with the same names; pip install '.[wandb]'.
    # What a run computes does not depend on it: a run that is taken up may change it.
    c.wandb = ConfigDict()
    c.wandb.project = ""  # empty: off
    c.wandb.mode = (
        "offline"  # files for `wandb sync` to send; or 'online': sent at once
    )

    c.dump = ConfigDict()  # whole rollouts as text
    c.dump.max_bytes = 2**28  # of the folder, compressed; 0: no dump
    c.dump.rows_per_step = 0  # rollouts a step; 0: all
    return c
