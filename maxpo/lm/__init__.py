"""Language models: train one for the best of k of its samples.

    import optax
    from maxpo import lm

    policy, tokenizer = lm.load("path/of/a/hugging-face/folder")
    problems = [lm.Problem(prompt="2+3=", answer="5"), lm.Problem(prompt="7+1=", answer="8")]
    result = lm.train(
        policy, tokenizer, problems,
        reward=lambda problem, text: float(text == problem.answer),
        method="maxpo:k=4", group_size=16, steps=200, optimizer=optax.adamw(1e-5),
        workdir="runs/mine",
    )
    result.curve["after"].value  # pass@k on held-out problems; .k, .error
    lm.evaluate(policy, tokenizer, problems, reward=reward).curve  # The same, without training.
    lm.save(result.policy, tokenizer, "trained")

A model of chats was trained on texts of one form: `lm.load_chat_template(folder).problem(problem)`
is the problem as a chat.

Below this door, in the order in which one builds on the other:

* `maxpo.lm.model`: a transformer, checkpoints of the open models, sampling and log-probabilities.
* `maxpo.lm.tasks`: problems, tokenizers, and verifiers that run in other processes.
* `maxpo.lm.training`: supervised fine-tuning, policy gradients, and evaluation by pass@k.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxpo.lm.model.lora import LoRA
    from maxpo.lm.model.transformer import Transformer
    from maxpo.lm.tasks.chat import load_chat_template
    from maxpo.lm.tasks.rewards import group_reward
    from maxpo.lm.tasks.text import Problem
    from maxpo.lm.tasks.tokenizers import CharTokenizer, Tokenizer, load_tokenizer
    from maxpo.lm.training.door import Result, train
    from maxpo.lm.training.evaluate import Evaluation, evaluate

__all__ = [
    "CharTokenizer",
    "Evaluation",
    "LoRA",
    "Problem",
    "Result",
    "evaluate",
    "group_reward",
    "load",
    "load_chat_template",
    "load_tokenizer",
    "new",
    "save",
    "train",
]

_MODULES = {
    "CharTokenizer": "maxpo.lm.tasks.tokenizers",
    "Evaluation": "maxpo.lm.training.evaluate",
    "LoRA": "maxpo.lm.model.lora",
    "Problem": "maxpo.lm.tasks.text",
    "Result": "maxpo.lm.training.door",
    "evaluate": "maxpo.lm.training.evaluate",
    "group_reward": "maxpo.lm.tasks.rewards",
    "load_chat_template": "maxpo.lm.tasks.chat",
    "load_tokenizer": "maxpo.lm.tasks.tokenizers",
    "train": "maxpo.lm.training.door",
}


def load(
    folder: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: bool = False,
) -> "tuple[Transformer, Tokenizer]":
    """The model and the tokenizer of a Hugging Face folder (Llama, Qwen2, Qwen3).

    Needs `pip install 'maxpo[lm]'`.

    Args:
      folder: With `config.json`, safetensors and `tokenizer.json`; or of a run that has them in
        its `hf/`.
      context_length: Longest prompt and completion together, in tokens. None: the checkpoint's own.
      dtype: Dtype of the computation, "float32" or "bfloat16".
      param_dtype: Dtype of the parameters; training keeps float32 ones whatever it is.
      remat: Compute each layer again in the backward pass, which saves memory.

    Raises:
      MissingExtraError: If a package of the extras is missing.
      ValueError: If the folder holds no such model or tokenizer.
    """
    from maxpo.lm.model.pretrained import load_pretrained
    from maxpo.lm.tasks.tokenizers import load_tokenizer
    from maxpo.lm.training.handover import checkpoint_folder

    folder = checkpoint_folder(folder, "folder")
    tokenizer = load_tokenizer(folder)
    model = load_pretrained(
        folder, context_length=context_length, dtype=dtype, param_dtype=param_dtype, remat=remat
    )
    return model, tokenizer


def save(
    policy: "Transformer",
    tokenizer: "Tokenizer",
    folder: str | os.PathLike[str],
    *,
    dtype: str = "float32",
) -> None:
    """Writes a model and its tokenizer as a folder for transformers, vLLM and others, or `load`.

    Needs `pip install 'maxpo[lm]'`, of which only safetensors. The tokenizer's companions, such as
    its chat template, come along where it was loaded from a folder. A `CharTokenizer` is read by
    `load` alone. Adapters are merged into their matrices.

    Args:
      policy: A `Transformer`, such as the policy of a `Result`.
      tokenizer: Between text and its tokens.
      folder: Where to; created if need be.
      dtype: What the parameters are stored as, "float32" or "bfloat16".

    Raises:
      MissingExtraError: If the package `safetensors` is missing.
      ValueError: If no architecture of Hugging Face can hold the model, or for another dtype.
      OSError: If a file cannot be written, naming it.
    """
    from maxpo.lm.model.lora import merged
    from maxpo.lm.training.handover import hand_over

    hand_over(policy.config, merged(policy), tokenizer, folder, dtype=dtype)


def new(
    size: str, tokenizer: "Tokenizer", *, context_length: int = 256, seed: int = 0, **overrides: Any
) -> "tuple[Transformer, Tokenizer]":
    """A model with random parameters for a tokenizer.

    Args:
      size: One of `maxpo.lm.model.config.SIZES`.
      tokenizer: Whose tokens it reads and writes, such as `CharTokenizer.from_texts(texts)`.
      context_length: Longest prompt and completion together, in tokens.
      seed: Seed of the random parameters.
      **overrides: Other fields of `TransformerConfig`, such as `layers=2`.

    Returns:
      The model and the tokenizer.

    Raises:
      ValueError: If the size or a field is unknown, or fields do not fit.
    """
    from flax import nnx

    from maxpo.lm.model.config import make_config
    from maxpo.lm.model.transformer import Transformer

    config = make_config(
        size, vocab_size=tokenizer.vocab_size, context_length=context_length, **overrides
    )
    return Transformer(config, rngs=nnx.Rngs(seed)), tokenizer


def __getattr__(name: str) -> Any:
    """Imports what is asked for: workers that score completions start without JAX."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
