"""What the `config.json` of a checkpoint says: from its fields to a configuration and back."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxpo.lm.model.config import Llama3Rope, TransformerConfig

CONFIG = "config.json"
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_ROPE_TYPES = ("default", "llama3")


class _Fields(NamedTuple):
    """The fields, and the file that they are of, which errors name."""

    where: Path
    values: Mapping[str, Any]

    def size(self, name: str, silent: int | None = None) -> int:
        """A positive integer; `silent` is what transformers takes where the file is silent."""
        value = self.values.get(name, silent)
        if value is None:
            raise ValueError(f"{self.where} has no field {name!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.unexpected(name, "an integer above 0", value)
        return value

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.unexpected(name, "a number above 0", value)
        if not 0 < value < math.inf:
            raise self.unexpected(name, "a number above 0", value)
        return float(value)

    def is_null(self, name: str) -> bool:
        return name in self.values and self.values[name] is None

    def unexpected(self, name: str, expected: str, value: Any) -> ValueError:
        """The error for a field, with its value as JSON."""
        return ValueError(f"{self.where}: {name}: expected {expected}, got {json.dumps(value)}")


def from_fields(
    where: Path,
    values: Mapping[str, Any],
    *,
    context_length: int | None,
    dtype: str,
    param_dtype: str,
    remat: bool,
) -> TransformerConfig:
    """The configuration; arguments and errors as `load_config`, with the fields of the file."""
    fields = _Fields(where, values)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _CLASSES:
        raise ValueError(
            f"expected one of the architectures {', '.join(_CLASSES)} in {where}, got "
            f"model_type {model_type!r}"
        )
    rope = _rope(fields)
    _check_features(fields, rope)
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise fields.unexpected("tie_word_embeddings", "true or false", tied)
    longest = fields.size("max_position_embeddings")
    if context_length is None:
        context_length = longest
    elif context_length > longest:
        raise ValueError(
            f"expected a context_length of at most {longest}, which is what the model in "
            f"{where.parent} is made for, got {context_length}"
        )
    heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
    # Null stands for what follows from other fields. A silent Qwen3 has heads of 128.
    null = fields.is_null("num_key_value_heads")
    kv_heads = heads if null else fields.size("num_key_value_heads", heads)
    head_dim = None
    if not fields.is_null("head_dim") and ("head_dim" in values or model_type == "qwen3"):
        head_dim = fields.size("head_dim", 128)
    theta = rope["rope_theta"] if "rope_theta" in rope else values.get("rope_theta", 1e4)
    return TransformerConfig(
        vocab_size=fields.size("vocab_size"),
        context_length=context_length,
        hidden=hidden,
        layers=fields.size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        mlp=fields.size("intermediate_size"),
        head_dim=head_dim,
        tied_embeddings=tied,
        qk_norm=model_type == "qwen3",
        attention_bias=model_type == "qwen2",
        rope_theta=fields.number("rope_theta", theta),
        rope_scaling=_rope_scaling(fields, rope),
        norm_epsilon=fields.number("rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
        dtype=dtype,
        param_dtype=param_dtype,
        remat=remat,
    )


def to_fields(config: TransformerConfig, dtype: str) -> dict[str, Any]:
    """The fields for a model whose parameters are stored in `dtype`; errors as `save_pretrained`.

    The rotary positions have the older names, which transformers 4, 5 and other readers know.
    """
    if config.qk_norm and config.attention_bias:
        raise ValueError(
            "expected at most one of qk_norm (Qwen3) and attention_bias (Qwen2), got a model with "
            "both, which no supported architecture has"
        )
    model_type = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    fields = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
    }
    if config.rope_scaling is not None:
        scaling = dataclasses.asdict(config.rope_scaling)
        fields["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return fields


def with_extra(
    fields: dict[str, Any], extra: Mapping[str, Any], config: TransformerConfig
) -> dict[str, Any]:
    """The fields and others beside them.

    Raises:
      ValueError: If JSON cannot hold a value, or the file would stand for another model, naming the
        field.
    """
    for name, value in extra.items():
        try:
            shown = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError(
                f"extra: {name}: expected a value that JSON can hold, got {value!r}"
            ) from None
        is_context = name == "max_position_embeddings"
        is_free = is_context or fields.get(name, value) == value
        if not (is_free and _stands_for(config, {**fields, name: value})):
            expected = (
                f"an integer of at least context_length = {config.context_length}"
                if is_context
                else "a field that leaves the model as it is"
            )
            raise ValueError(f"extra: {name}: expected {expected}, got {shown}")
    return {**fields, **extra}


def _stands_for(config: TransformerConfig, fields: dict[str, Any]) -> bool:
    """Whether a file of these fields is read as just this configuration."""
    try:
        read = from_fields(
            Path(CONFIG),
            fields,
            context_length=config.context_length,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            remat=config.remat,
        )
    except ValueError:
        return False
    return read == config


def _rope(fields: _Fields) -> dict[str, Any]:
    """Settings of the rotary positions; `rope_parameters` is the newer name of `rope_scaling`."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        found = fields.values.get(name)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise fields.unexpected(name, "an object or null", found)
        if any(isinstance(value, dict) for value in found.values()):
            raise fields.unexpected(name, "the same for all layers", found)
        if "type" in found:  # The oldest name.
            found = {"rope_type": found["type"], **found}
        for key in found:
            # Readers differ in which of the two they believe.
            if found[key] != rope.get(key, found[key]):
                raise fields.unexpected(f"{name}.{key}", "that of rope_scaling", found[key])
        rope |= found
    return rope


def _rope_scaling(fields: _Fields, rope: dict[str, Any]) -> Llama3Rope | None:
    if rope.get("rope_type", "default") == "default":
        return None
    settings: dict[str, Any] = {
        field.name: rope.get(field.name) for field in dataclasses.fields(Llama3Rope)
    }
    try:
        return Llama3Rope(**settings)
    except ValueError as error:
        raise ValueError(f"{fields.where}: rotary positions 'llama3': {error}") from None


def _check_features(fields: _Fields, rope: dict[str, Any]) -> None:
    """Raises ValueError for what `Transformer` cannot do."""
    where, values = fields.where, fields.values
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        raise ValueError(
            f"{where}: expected rotary positions to be one of {_ROPE_TYPES}, got {rope_type!r}"
        )
    layer_types = values.get("layer_types")
    if layer_types is not None and not isinstance(layer_types, list):
        raise fields.unexpected("layer_types", "a list or null", layer_types)
    qwen2 = values["model_type"] == "qwen2"
    for name, value, supported in (
        ("hidden_act", values.get("hidden_act", "silu"), "silu"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        # Qwen2 has biases without a word; those of Llama and Qwen3 would include the output's.
        ("attention_bias", not qwen2 and values.get("attention_bias", False), False),
        ("mlp_bias", values.get("mlp_bias", False), False),
        ("use_sliding_window", values.get("use_sliding_window", False), False),
        ("layer_types", {str(x) for x in layer_types or ()} - {"full_attention"}, set()),
        ("quantization_config", values.get("quantization_config"), None),
    ):
        if value != supported:
            raise ValueError(f"{where}: expected {name} to be {supported!r}, got {value!r}")
