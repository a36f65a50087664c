"""Language models: methods from one warm start, judged by the best of k on held-out problems.

    python -m experiments.lm --config=configs/lm.py[:VARIANT] [--config.FIELD=VALUE]

Variants. The first three need `pip install 'maxpo[lm]'` and nothing else:

    default  A binary task: the countdown puzzle of reasoning-gym with four numbers, a character
             model of 0.3M parameters, six methods with three seeds each.
    graded   The same with larger numbers, scored as on television: a near miss has a part of the
             reward.
    quick    The default with two methods and one seed.
    reasoning  Any data set of reasoning-gym: --config.task.dataset=chain_sum
             --config.task.options='{"max_terms": 3}'.
    jsonl    Your own problems: --config.task.train_path=A.jsonl --config.task.held_out_path=B.jsonl
             (GSM8K's format as it is, plain or .gz; or Parquet, with the extra parquet). Needs no
             extra with characters for tokens.
    smollm2  A real model, SmolLM2-135M-Instruct (see experiments/import_gguf.py), on sums of two
             numbers of at most two digits: three methods with two seeds, an hour on 2 cores.
    smollm2_quick  The same model on products, one method: a better model in minutes.
    gpu      0.5B parameters in bfloat16, 256 samples of up to 512 tokens in a step. For a
             checkpoint instead of random parameters: --config.model.pretrained=DIR
             --config.sft.steps=0, with the extra hf.

A method is `ESTIMATOR[:NAME=VALUE,...]`: `maxpo:k=8`, `maxpo:k=8->1` (annealed in a straight line
over the run), `grpo:learning_rate=1e-4`. All methods see the same prompts and use one learning
rate: the gradient's norm is clipped and Adam divides by its size, so that the estimators' scales,
which differ by more than k, matter little.

What happens to failed, truncated and masked samples, rule by rule, is in docs/samples.md.
"""

from ml_collections import ConfigDict, config_dict

from maxpo.runs import check_variant

__all__ = ["VARIANTS", "get_config"]

VARIANTS = (
    "default",
    "graded",
    "quick",
    "reasoning",
    "jsonl",
    "smollm2",
    "smollm2_quick",
    "gpu",
)

# What every kind of task has: how prompts are made of its texts, and rewards.
ANY_TASK = ConfigDict(
    {
        # Whether they are chats, in the format of the checkpoint's own template; None: if it has
        # one. The template of the task then makes what the user says.
        "chat": config_dict.placeholder(bool),
        "system": "",  # What the system says in a chat; "": what the template says by itself.
        "chat_options": "",  # What else the template reads, as JSON: '{"enable_thinking": false}'.
        "answer_prefix": "",  # How every answer begins; a part of what the verifier sees.
        # Further parts of the reward beside the verifier's, which decides what is correct, as JSON:
        # '{"brief": {"verifier": "mine:is_brief", "weight": 0.2}}'. They need binary=False.
        "parts": "",
        "max_prompt_length": 0,  # Tokens; problems with longer prompts are left out. 0: none are.
    }
)


def get_config(variant: str = "default") -> ConfigDict:
    """The config of one of `VARIANTS`."""
    check_variant(variant, VARIANTS)

    config = ConfigDict()
    config.seed = 0  # Seed of the model and the fine-tuning; runs have this and the next ones.
    config.seeds = 3  # Runs of each method, all from the one warm start.
    config.methods = (
        "maxpo:k=8",
        "maxpo:k=4",
        "maxpo:k=8->1",
        "pkpo_loo_minus_one:k=4",
        "grpo",
        "rloo",
    )

    config.task = ConfigDict()
    config.task.kind = "reasoning"  # A data set of reasoning-gym; or jsonl.
    config.task.dataset = "countdown"
    config.task.train_size = 4096
    config.task.held_out_size = 512
    config.task.seed = 0
    config.task.template = "{metadata[numbers]:,}={metadata[target]}:"
    config.task.answer_template = "{answer}"
    config.task.options = ConfigDict(
        {
            "min_numbers": 4,
            "max_numbers": 4,
            "min_value": 1,
            "max_value": 9,
            "min_target": 1,
            "max_target": 99,
            "operators": ("+", "-", "*"),
        }
    )
    # Module:function; or scorer, the data set's own, for which each answer gets its own process.
    config.task.verifier = "maxpo.lm.tasks.countdown:exact_score"
    config.task.success = 1.0  # The score from which a completion is correct, for pass@k.
    config.task.binary = True  # The reward is whether it is; False: the verifier's score.
    config.task.update(ANY_TASK)

    # Path of a tokenizer.json. "": the checkpoint's, or else the characters of the task's texts.
    config.tokenizer = ""

    config.model = ConfigDict()
    config.model.size = "nano"  # One of maxpo.lm.model.config.SIZES.
    config.model.overrides = ConfigDict()  # Other fields of TransformerConfig.
    # In place of a size: folder of a checkpoint (Llama, Qwen2, Qwen3), or of a run that has hf/.
    config.model.pretrained = ""
    # Dtype of the hf/ that a run from a checkpoint leaves, or bfloat16; "": it leaves none.
    config.model.export = "float32"
    config.model.vocab_size = 0  # 0: the tokenizer's.
    config.model.context_length = 0  # 0: the longest prompt and rl.max_new_tokens.
    config.model.dtype = "float32"  # Dtype of the computation; or bfloat16.
    # Dtype of the weights before training, which keeps float32 master weights whatever it is; with
    # LoRA that of the frozen weights.
    config.model.param_dtype = "float32"
    config.model.remat = False
    # Low-rank adapters, which are then all that is trained of a checkpoint's model.
    config.model.lora = ConfigDict()
    config.model.lora.rank = 0  # 0: none; all weights are trained.
    config.model.lora.alpha = 32.0  # Adapters count alpha / rank times.
    config.model.lora.targets = ("qkv", "attention_out", "gate", "up", "down")

    config.mesh = ConfigDict()  # A mesh of all devices; see maxpo.parallel.
    config.mesh.data = 0  # Over which batches are spread; 0: what `model` leaves.
    config.mesh.model = 1  # Over which matrices are cut.
    config.mesh.fully_sharded = False  # Cut matrices over `data`, too.

    # Cross-entropy on the answers of the training problems.
    config.sft = ConfigDict()
    config.sft.steps = 500  # 0: none.
    config.sft.batch_size = 128
    config.sft.learning_rate = 3e-3
    config.sft.final_rate = 0.1  # The last learning rate, as a part of the first.
    config.sft.warmup_steps = 20  # Steps over which the learning rate grows.
    # adamw, lion, adafactor or muon, with options as in adamw:moments=bfloat16; see
    # maxpo.lm.training.named_optimizers.
    config.sft.optimizer = "adamw"
    config.sft.max_gradient_norm = 1.0
    config.sft.b2 = 0.95  # Decay of AdamW's second moments; lion and adafactor do not read it.
    config.sft.weight_decay = 0.0
    config.sft.log_every = 20
    config.sft.save_every = 100

    config.rl = ConfigDict()
    config.rl.steps = 200
    config.rl.prompts = 32  # P, in each step.
    config.rl.group_size = 16  # N, samples of each prompt.
    config.rl.max_new_tokens = 16
    config.rl.temperature = 1.0  # For sampling; the loss is that of the same distribution.
    config.rl.sampling_batches = 2  # One is verified while the next one is sampled.
    # clipped_ratio allows several epochs and minibatches; score_function is unbiased.
    config.rl.loss = "score_function"
    config.rl.importance_level = "token"  # Or sequence: one ratio for each sample.
    config.rl.loss_aggregation = "constant"  # See maxpo.losses.reduce_tokens: also sequence, token.
    config.rl.length = 1.0  # The divisor of loss_aggregation=constant.
    config.rl.clip_low = 0.2
    config.rl.clip_high = 0.2
    config.rl.clip_dual = 0.0  # The ratio beyond which a negative advantage stops counting; 0: off.
    config.rl.epochs = 1
    config.rl.minibatches = 1  # Optimizer steps in an epoch.
    config.rl.micro_batches = 1  # Parts of a minibatch, one in memory at a time.
    # Updates compute for the tokens that were written, not for max_new_tokens of every sample. It
    # pays where most samples end early; a program is compiled for each of a few numbers of tokens.
    config.rl.packing = False
    config.rl.kl_coefficient = 0.0  # Weight of the KL to the warm start; 0: it is not computed.
    config.rl.kl_estimator = "k2"
    config.rl.entropy_coefficient = 0.0
    # Groups whose rewards are all equal: keep; drop: they count in no mean; oversample: draw up to
    # `oversampling` times as many prompts, in rounds, until there are enough others. The last two
    # change the objective: prompts that are solved or hopeless weigh nothing.
    config.rl.zero_variance_groups = "keep"
    config.rl.oversampling = 1
    # A sample whose verification fails: zero, its reward is 0, or the lowest of its group if that
    # is less; or mask, nothing is learned from it. See docs/samples.md.
    config.rl.failures = "zero"
    # A sample that has not ended after max_new_tokens: keep it; mask, nothing is learned from it;
    # or penalty, its reward is `truncation_penalty` less.
    config.rl.truncated = "keep"
    config.rl.truncation_penalty = 0.0
    config.rl.learning_rate = 1e-4
    config.rl.warmup_steps = 5  # Optimizer steps.
    config.rl.optimizer = "adamw"  # As sft.optimizer.
    config.rl.max_gradient_norm = 1.0
    config.rl.b2 = 0.95
    config.rl.weight_decay = 0.0
    config.rl.eval_k = 8  # The k of logged metrics and of the table.
    config.rl.save_every = 50

    config.evaluation = ConfigDict()
    config.evaluation.samples = 32  # n, of each held-out problem.
    config.evaluation.prompts = 64  # At a time.
    config.evaluation.temperature = 1.0
    config.evaluation.every = 0  # Steps between evaluations while training; 0: only at the end.
    # Evaluations in a row without a new best, after which a run ends early; 0: never.
    config.evaluation.patience = 0

    config.log = ConfigDict()
    config.log.every = 10  # Steps between two of which completions.jsonl has groups; 0: never.
    config.log.groups = 2  # Groups of each of them, and of each evaluation.
    # Who else gets the metrics of each run: any of tensorboard, wandb, trackio, each an extra.
    config.log.loggers = ()

    # Whether centering pays: the variance of the gradient under maxpo over that under
    # pkpo_loo_minus_one, measured for methods with a k above 1.
    config.diagnostics = ConfigDict()
    config.diagnostics.gradient_variance = 0  # Steps between two measurements; 0: there are none.
    config.diagnostics.prompts = 8  # Of each measurement, with two groups of samples each.

    config.verification = ConfigDict()
    config.verification.workers = 2  # Samples that are verified at a time.
    config.verification.time_limit = 10.0  # Seconds for a sample.
    config.verification.memory_limit = 4.0  # GiB that each process of a sample may allocate.

    if variant == "graded":
        config.task.options.update(min_value=2, max_value=25, min_target=100, max_target=500)
        config.task.verifier = "maxpo.lm.tasks.countdown:television_score"
        config.task.binary = False
        config.rl.max_new_tokens = 20
    elif variant == "quick":
        config.seeds = 1
        config.methods = ("maxpo:k=8", "rloo")
    elif variant == "reasoning":
        _any_data_set(config)
        config.model.size = "tiny"
        config.rl.update(max_new_tokens=64, packing=True)
    elif variant == "smollm2":
        _any_data_set(config)
        config.methods = ("maxpo:k=4", "pkpo_loo_minus_one:k=4", "rloo")
        config.seeds = 2
        _small_model(config)
        config.task.dataset = "chain_sum"
        config.task.options = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}'
        config.task.verifier = "numeric"
        config.task.train_size = 1024
        config.task.held_out_size = 48
        config.rl.steps = config.rl.save_every = 20
        config.evaluation.every = 10
    elif variant in ("jsonl", "smollm2_quick"):
        config.task = ConfigDict(
            {
                "kind": "jsonl",
                "train_path": "",
                "held_out_path": "",
                "prompt_field": "question",
                "answer_field": "answer",  # "" or None: there is none.
                "template": "{prompt}",
                # Or math, of LaTeX (extra math), or exact; or module:function, of a Problem and a
                # text.
                "verifier": "numeric",
                "success": 1.0,
                "binary": True,
            }
        )
        config.task.update(ANY_TASK)
        config.model.size = "tiny"
        config.rl.update(max_new_tokens=64, packing=True)
        if variant == "smollm2_quick":
            config.methods = ("maxpo:k=4",)
            config.seeds = 1
            _small_model(config)
            # All products of 3 to 12; 7 x 8 and 8 x 7 are in one file.
            config.task.train_path = "configs/data/products_train.jsonl"
            config.task.held_out_path = "configs/data/products_held_out.jsonl"
            config.rl.steps = 16
    elif variant == "gpu":
        config.seeds = 1
        config.methods = ("maxpo:k=8",)
        config.task.options.update(max_numbers=6, max_value=99, max_target=999)
        config.model.size = "0.5b"
        config.model.dtype = "bfloat16"
        config.model.remat = True
        config.sft.learning_rate = 1e-4
        config.rl.prompts = 16
        config.rl.update(max_new_tokens=512, packing=True)
        config.rl.micro_batches = 4
        config.rl.learning_rate = 1e-6
        config.verification.workers = 8
    return config


def _any_data_set(config: ConfigDict) -> None:
    """Makes the task one of reasoning-gym's data sets, by name and with options as JSON."""
    task = config.task
    task.template = "{question}"
    task.verifier = "scorer"
    # The types of fields are fixed, but for this one: text can be given on the command line.
    with task.ignore_type():
        task.options = ""


def _small_model(config: ConfigDict) -> None:
    """Trains SmolLM2-135M-Instruct as it is, without fine-tuning on answers."""
    config.model.pretrained = "models/smollm2"
    config.model.export = "bfloat16"
    config.model.remat = True  # On a CPU it is faster, too: attention then has its own gradient.
    config.sft.steps = 0
    config.rl.update(prompts=8, group_size=8, sampling_batches=1, max_new_tokens=32, packing=True)
    config.rl.update(learning_rate=2e-5, save_every=16)
    config.evaluation.samples = 16
    config.evaluation.prompts = 24
    config.log.every = 4
