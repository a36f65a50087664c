"""How fast a language model samples and learns, against transformers and the machine's peaks.

All times are taken in turns in one process, so that a slow moment of the machine meets all of them,
and compared as medians. Both sides have the same weights, carried over as a checkpoint, and the
same batch: P prompts, N completions of T tokens each.

* Sampling counts the P N T new tokens. Nothing stops early: transformers is given no end token, and
  our loop goes on while any sample does.
* An update is a forward and a backward pass, `mean(-A log pi(y | x))` with respect to all
  parameters, without the optimizer's step. It counts the P N (S + T) tokens of all prompts and
  completions on both sides, although ours runs a prompt once for its group. What it takes where it
  does not is a row of its own. Both sides cut it into the same micro-batches.
"""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from maxpo import runs
from maxpo._extras import MissingExtraError
from maxpo.lm.model.config import TransformerConfig, make_config
from maxpo.lm.model.generation import generate
from maxpo.lm.model.pretrained import save_pretrained
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.token_log_probs import completion_log_probs, token_log_probs
from maxpo.lm.model.transformer import Transformer
from maxpo.plotting import WIDTH, tidy
from maxpo.studies.speed.work import parameters_of_layers, update_flops

__all__ = [
    "CACHES",
    "PEAKS",
    "QUARTERS",
    "Batch",
    "Calls",
    "Peak",
    "check_config",
    "decoding_bytes",
    "figure",
    "huggingface_calls",
    "make_batch",
    "model_config",
    "our_calls",
    "peak",
    "policy_loss",
    "table",
    "unchunked_loss",
    "update_function",
    "update_memory",
    "whole_sequence_loss",
    "whole_sequences",
]

CACHES = ("dynamic", "static")
QUARTERS = 4

Calls = dict[str, Callable[[], Any]]


class Peak(NamedTuple):
    """What a device can do: bfloat16 products without sparsity, and bytes to and from its memory.

    Both for each second, from the vendors' data sheets.
    """

    flops: float
    bandwidth: float


PEAKS = {
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
    "NVIDIA L4": Peak(121e12, 0.3e12),
    "NVIDIA L40S": Peak(362e12, 0.864e12),
    "TPU v4": Peak(275e12, 1.228e12),
    "TPU v5 lite": Peak(197e12, 0.819e12),
    "TPU v5p": Peak(459e12, 2.765e12),
    "TPU v6 lite": Peak(918e12, 1.64e12),
}
"""By what JAX calls the device's kind."""


class Batch(NamedTuple):
    """What is sampled from and learned from: prompts, completions `[P, N, T]`, advantages."""

    prompts: Prompts
    tokens: jax.Array
    advantages: jax.Array


def check_config(config: ConfigDict) -> None:
    """Checks a config and that what it needs is installed, before any work.

    Raises:
      MissingExtraError: If the comparison with transformers is asked for and packages are missing.
      ValueError: If a size is out of range, or that comparison is asked for away from the CPU.
    """
    least = {"repeats": 1, "prompts": 1, "group_size": 1, "prompt_length": 1}
    for name, bound in {**least, "new_tokens": QUARTERS + 1}.items():
        if not config[name] >= bound:
            raise ValueError(f"expected {name} of at least {bound}, got {config[name]}")
    runs.check_numbers(
        config,
        at_least={
            "seed": 0,
            "micro_batches": 1,
            "peak.flops": 0,
            "peak.bandwidth": 0,
            "long_vocabulary.prompts": 1,
            "long_vocabulary.group_size": 1,
            "long_vocabulary.prompt_length": 1,
            "long_vocabulary.new_tokens": 1,
        },
    )
    if (config.peak.flops == 0) != (config.peak.bandwidth == 0):
        raise ValueError(
            "peak.flops, peak.bandwidth: expected both, or 0 for both, got "
            f"{config.peak.flops:g} and {config.peak.bandwidth:g}"
        )
    runs.check_divisor("micro_batches", config.micro_batches, of="prompts", whole=config.prompts)
    model_config(config)
    model_config(config.long_vocabulary)
    if not config.huggingface:
        return
    unknown = set(config.huggingface_caches) - set(CACHES)
    if unknown or not config.huggingface_caches:
        raise ValueError(
            f"expected huggingface_caches out of {CACHES}, got {tuple(config.huggingface_caches)}"
        )
    if jax.default_backend() != "cpu":
        raise ValueError(
            "transformers is timed with torch on the CPU, which says nothing about the "
            f"{jax.default_backend()} that JAX runs on: set --config.huggingface=False"
        )
    packages = ("torch", "transformers", "safetensors")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the comparison with transformers needs {', '.join(missing)}: "
            "pip install 'maxpo[hf]', or --config.huggingface=False"
        )


def model_config(config: ConfigDict) -> TransformerConfig:
    """The shape of the model that is timed."""
    fields = {name: value for name, value in config.model.items() if name != "size"}
    length = config.prompt_length + config.new_tokens
    return make_config(config.model.size, context_length=length, **fields)


def make_batch(config: ConfigDict, key: jax.Array) -> Batch:
    """Random tokens and advantages; a token's value changes no time."""
    P, N = config.prompts, config.group_size
    of_prompts, of_completions, of_advantages = jax.random.split(key, 3)

    def tokens(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.randint(key, shape, 0, config.model.vocab_size, jnp.int32)

    prompts = tokens(of_prompts, P, config.prompt_length)
    return Batch(
        Prompts(prompts, jnp.ones(prompts.shape, bool)),
        tokens(of_completions, P, N, config.new_tokens),
        jax.random.normal(of_advantages, (P, N)),
    )


def policy_loss(model: Transformer, batch: Batch) -> jax.Array:
    """`mean(-A log pi(y | x))` over all tokens of the completions; prompts run once."""
    mask = jnp.ones(batch.tokens.shape, bool)
    log_probs = completion_log_probs(model, batch.prompts, batch.tokens, mask).log_probs
    return -jnp.mean(batch.advantages[..., None] * log_probs)


def whole_sequences(batch: Batch) -> jax.Array:
    """Each completion after a copy of its prompt: `[P N, S + T]`."""
    P, N, T = batch.tokens.shape
    copies = jnp.repeat(batch.prompts.tokens, N, axis=0)
    return jnp.concatenate([copies, batch.tokens.reshape(P * N, T)], axis=1)


def whole_sequence_loss(model: Transformer, batch: Batch) -> jax.Array:
    """`policy_loss`, with every prompt run for each of its completions."""
    T = batch.tokens.shape[-1]
    sequences = whole_sequences(batch)
    hidden = model.hidden_states(sequences, jnp.ones(sequences.shape, bool))
    log_probs = token_log_probs(
        hidden[:, -T - 1 : -1], model.unembedding(), sequences[:, -T:]
    ).log_probs
    return -jnp.mean(batch.advantages.reshape(-1, 1) * log_probs)


def unchunked_loss(model: Transformer, batch: Batch) -> jax.Array:
    """`whole_sequence_loss` through all logits at once, as one would write it first."""
    T = batch.tokens.shape[-1]
    sequences = whole_sequences(batch)
    hidden = model.hidden_states(sequences, jnp.ones(sequences.shape, bool))
    log_probs = jax.nn.log_softmax(model.logits(hidden[:, -T - 1 : -1]))
    log_probs = jnp.take_along_axis(log_probs, sequences[:, -T:, None], axis=-1)[..., 0]
    return -jnp.mean(batch.advantages.reshape(-1, 1) * log_probs)


def update_function(
    model: Transformer, loss: Callable[[Transformer, Batch], jax.Array], micro_batches: int = 1
) -> tuple[Callable[[Any, Batch], tuple[jax.Array, Any]], Any]:
    """A function of parameters and batch that returns loss and gradients, and the parameters.

    Args:
      model: The policy.
      loss: A mean over the batch.
      micro_batches: Parts of the batch, one in memory at a time; a divisor of the prompts.
    """
    graph, state = nnx.split(model)

    def update(state: Any, batch: Batch) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda state: loss(nnx.merge(graph, state), batch))(state)

    def accumulated(state: Any, batch: Batch) -> tuple[jax.Array, Any]:
        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, update(state, part)), None

        parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state))
        total: Any = jax.lax.scan(add, zeros, parts)[0]
        return jax.tree.map(lambda x: x / micro_batches, total)

    return update if micro_batches == 1 else accumulated, state


def our_calls(config: ConfigDict, model: Transformer, batch: Batch, key: jax.Array) -> Calls:
    """What is timed on our side, by name."""
    sample = functools.partial(
        generate, model, batch.prompts, group_size=config.group_size, eos_id=0, key=key
    )

    def sample_all() -> Any:
        completions = sample(max_new_tokens=config.new_tokens)
        if not bool(jnp.any(completions.mask[..., -1])):
            raise ValueError(
                "every sample ended early, so that the times would say nothing: expected more "
                "samples, another seed or a larger vocabulary"
            )
        return completions

    calls: Calls = {"sampling": sample_all}
    if peak(config):  # Only decoding's bandwidth asks for it.
        calls["first token"] = functools.partial(sample, max_new_tokens=1)
    for name, loss in (("update", policy_loss), ("unshared update", whole_sequence_loss)):
        update, state = update_function(model, loss, config.micro_batches)
        calls[name] = functools.partial(jax.jit(update), state, batch)
    calls.update(_decoding_calls(config, model, batch))
    return calls


def _quarter(config: ConfigDict) -> int:
    """Steps in a quarter of the decoding loop, which begins after the first token."""
    return (config.new_tokens - 1) // QUARTERS


def _decoding_calls(config: ConfigDict, model: Transformer, batch: Batch) -> Calls:
    """The steps of each quarter of the decoding loop, by themselves."""
    graph, state = nnx.split(model)

    @jax.jit
    def start(state: Any) -> tuple[Any, Any]:
        model = nnx.merge(graph, state)
        cache = model.empty_cache(config.prompts, config.group_size, config.new_tokens - 1)
        return model.prefill(batch.prompts)[0], cache

    @functools.partial(jax.jit, donate_argnums=2)
    def run(state: Any, prompt: Any, cache: Any, first: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, state)
        layers = model.decoding_weights()

        def turn(step: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            hidden, cache = model.decode(layers, carry[0], step, prompt, carry[1])
            return jnp.argmax(model.logits(hidden), axis=-1).astype(jnp.int32), cache

        tokens = batch.tokens[..., 0]
        return jax.lax.fori_loop(first, first + _quarter(config), turn, (tokens, cache))

    prompt, cache = start(state)

    def call(first: jax.Array) -> jax.Array:
        nonlocal cache
        tokens, cache = run(state, prompt, cache, first)
        return tokens

    starts = {f"decoding, quarter {q + 1}": q * _quarter(config) for q in range(QUARTERS)}
    return {name: functools.partial(call, jnp.int32(first)) for name, first in starts.items()}


def huggingface_calls(config: ConfigDict, model: Transformer, batch: Batch) -> Calls:
    """What is timed of transformers, by name: the same weights, prompts, lengths and loss."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="sdpa", dtype=getattr(torch, model.config.dtype)
        ).eval()

    def tensor(x: jax.Array) -> Any:
        return torch.from_numpy(np.array(x))

    N, T = config.group_size, config.new_tokens
    prompts = tensor(jnp.repeat(batch.prompts.tokens, N, axis=0)).long()
    prompt_mask = torch.ones_like(prompts)
    sequences = tensor(whole_sequences(batch)).long()
    sequence_mask = torch.ones_like(sequences)
    advantages = tensor(batch.advantages).reshape(-1, 1)

    def sample(cache: str) -> Any:
        settings = transformers.GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=T,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
            cache_implementation=cache,
        )
        with torch.no_grad():
            return theirs.generate(prompts, attention_mask=prompt_mask, generation_config=settings)

    def update() -> Any:
        theirs.zero_grad(set_to_none=True)
        parts = (x.chunk(config.micro_batches) for x in (sequences, sequence_mask, advantages))
        loss = sum(map(part_of_update, *parts))
        return loss, {name: parameter.grad for name, parameter in theirs.named_parameters()}

    def part_of_update(sequences: Any, mask: Any, advantages: Any) -> Any:
        logits = theirs(
            input_ids=sequences, attention_mask=mask, use_cache=False, logits_to_keep=T + 1
        ).logits[:, :-1]
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        chosen = log_probs.gather(-1, sequences[:, -T:, None])[..., 0]
        loss = -(advantages * chosen).mean() / config.micro_batches
        loss.backward()
        return loss.detach()

    calls: Calls = {
        f"transformers sampling, {cache} cache": functools.partial(sample, cache)
        for cache in config.huggingface_caches
    }
    calls["transformers update"] = update
    return calls


def update_memory(config: ConfigDict) -> dict[str, float]:
    """Bytes that an update takes at a long vocabulary, from the compiler: nothing is run.

    Parameters, gradients and all that is in between.

    Returns:
      Bytes with log-probabilities in chunks and with all logits at once; nothing where the compiler
      does not say.
    """
    sizes = config.long_vocabulary
    shape = model_config(sizes)
    model = nnx.eval_shape(lambda: Transformer(shape, rngs=nnx.Rngs(0)))
    batch = jax.eval_shape(functools.partial(make_batch, sizes), jax.random.key(0))
    found = {}
    for name, loss in (("in chunks", policy_loss), ("at once", unchunked_loss)):
        update, state = update_function(model, loss)
        analysis = jax.jit(update).lower(state, batch).compile().memory_analysis()
        if analysis is None:
            return {}
        found[name] = float(
            analysis.argument_size_in_bytes
            + analysis.output_size_in_bytes
            + analysis.temp_size_in_bytes
        )
    return found


def decoding_bytes(config: ConfigDict) -> float:
    """Bytes that decoding cannot but read, all steps after the first token together.

    Each step reads all matrices, the keys and values of each prompt once for its group, and those
    of the completions so far.
    """
    shape = model_config(config)
    P, N, S, T = config.prompts, config.group_size, config.prompt_length, config.new_tokens
    matrices = parameters_of_layers(shape) + shape.vocab_size * shape.hidden
    position = 2 * shape.layers * shape.kv_heads * shape.head_width
    positions = (T - 1) * P * S + P * N * (T - 1) * T // 2
    return jnp.dtype(shape.dtype).itemsize * float((T - 1) * matrices + positions * position)


def peak(config: ConfigDict) -> Peak | None:
    """The config's peak, where it gives one, or else that of the device, where it is known."""
    given = Peak(config.peak.flops, config.peak.bandwidth)
    known = PEAKS.get(jax.devices()[0].device_kind)
    if all(given):
        return given
    return known


def table(
    config: ConfigDict, seconds: Mapping[str, list[float]], memory: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Rows by what was measured: ours, what it is compared with, and their ratio."""
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    P, N, S, T = config.prompts, config.group_size, config.prompt_length, config.new_tokens
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, unit: str, ours: float, other: float | None = None, which: str = "") -> None:
        ratio = None if other is None else ours / other
        rows[name] = {
            "unit": unit,
            "maxpo": ours,
            "compared": other,
            "ratio": ratio,
            "compared with": which or "-",
        }

    theirs = {
        cache: P * N * T / median[f"transformers sampling, {cache} cache"]
        for cache in config.huggingface_caches
        if config.huggingface
    }
    if theirs:
        best = max(theirs, key=lambda cache: theirs[cache])
        which = f"transformers, {best} cache"
        add("sampling", "new tokens/s", P * N * T / median["sampling"], theirs[best], which)
    else:
        add("sampling", "new tokens/s", P * N * T / median["sampling"])
    of_update = median.get("transformers update")
    for name in ("update", "unshared update"):
        other = None if of_update is None else P * N * (S + T) / of_update
        which = "" if other is None else "transformers"
        add(name, "tokens/s", P * N * (S + T) / median[name], other, which)

    steps = [1e3 * median[f"decoding, quarter {q + 1}"] / _quarter(config) for q in range(QUARTERS)]
    add("decoding step, last quarter", "ms", steps[-1], steps[0], "first quarter")
    if memory:
        name = f"update's memory at vocabulary {config.long_vocabulary.model.vocab_size}"
        add(name, "MB", memory["in chunks"] / 1e6, memory["at once"] / 1e6, "all logits at once")
    limit = peak(config)
    if limit is not None:
        device = jax.devices()[0].device_kind
        loop = median["sampling"] - median["first token"]
        rate = decoding_bytes(config) / loop / 1e9
        add("decoding", "GB/s", rate, limit.bandwidth / 1e9, f"peak of {device}")
        if model_config(config).dtype == "bfloat16":
            flops = update_flops(
                model_config(config),
                prompts=P,
                group_size=N,
                prompt_length=S,
                new_tokens=T,
            )
            rate = flops / median["update"] / 1e12
            add("update's products", "TFLOP/s", rate, limit.flops / 1e12, f"peak of {device}")
    return rows


def figure(config: ConfigDict, seconds: Mapping[str, list[float]]) -> Figure:
    """Seconds of each whole call, with the range of its rounds, and of a step by the quarters."""
    drawing = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    calls, quarters = drawing.subplots(1, 2, width_ratios=(3, 2))
    is_quarter = [f"decoding, quarter {q + 1}" for q in range(QUARTERS)]
    names = [name for name in seconds if name not in is_quarter]
    colors = ["#b0b0b0" if name.startswith("transformers") else "#1f4e9c" for name in names]
    times = [np.asarray(seconds[name]) for name in names]
    middle = np.array([np.median(t) for t in times])
    spread = np.array([[m - t.min(), t.max() - m] for m, t in zip(middle, times, strict=True)])
    calls.barh(names, middle, xerr=spread.T, color=colors, ecolor="#4d4d4d")
    calls.invert_yaxis()
    calls.set_title("one call (s)", loc="left", fontsize=11)
    steps = [1e3 * np.median(seconds[name]) / _quarter(config) for name in is_quarter]
    starts = 1 + np.arange(QUARTERS) * _quarter(config)
    quarters.plot(starts, steps, color="#1f4e9c", marker="o")
    quarters.set_ylim(0, 1.1 * max(steps))
    quarters.set_xlabel("tokens already sampled")
    quarters.set_title("one decoding step (ms)", loc="left", fontsize=11)
    for axis in (calls, quarters):
        tidy(axis, margin=0.05)
    return drawing
