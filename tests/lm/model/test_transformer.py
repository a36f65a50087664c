"""The decoder against a plain NumPy one, and what padding and groups must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maxpo.lm.model.config import SIZES, TransformerConfig, make_config
from maxpo.lm.model.prompts import Prompts
from maxpo.lm.model.transformer import Transformer

TINY = {
    "vocab_size": 11,
    "context_length": 16,
    "hidden": 12,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "mlp": 10,
    "head_dim": 6,
}
SHAPES = {
    "grouped queries": {},
    "untied": {"tied_embeddings": False},
    "qk norm": {"qk_norm": True},
    "bias": {"attention_bias": True},
    "everything": {
        "tied_embeddings": False,
        "qk_norm": True,
        "attention_bias": True,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 4,
        "rope_theta": 50.0,
        "norm_epsilon": 0.1,
    },
    "a head each": {"kv_heads": 4},
}


def make_model(seed=0, **fields):
    """A model all of whose parameters matter: no norm at one, no bias at zero."""
    model = Transformer(TransformerConfig(**{**TINY, **fields}), rngs=nnx.Rngs(0))
    parameters = nnx.state(model)
    leaves, tree = jax.tree.flatten(parameters)
    rng = np.random.default_rng(seed)
    leaves = [(leaf + 0.3 * rng.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    nnx.update(model, jax.tree.unflatten(tree, leaves))
    return model


def numpy_logits(model, tokens):
    """Logits `[T, V]` of one sequence without padding: loops, float64, one head at a time."""
    config = model.config
    values = {
        name: np.asarray(variable[...], np.float64)
        for name, variable in nnx.to_flat_state(nnx.state(model.layers))
        for name in [name[0]]
    }
    embedding = np.asarray(model.embedding[...], np.float64)
    width, group = config.head_dim, config.heads // config.kv_heads

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x):
        """As complex numbers: dimension i is the real part, i + width / 2 the imaginary one."""
        positions = np.arange(len(x))[:, None]
        frequencies = config.rope_theta ** (-2 * np.arange(width // 2) / width)
        turned = (x[:, : width // 2] + 1j * x[:, width // 2 :]) * np.exp(
            1j * positions * frequencies
        )
        return np.concatenate([turned.real, turned.imag], axis=1)

    x = embedding[tokens]
    for i in range(config.layers):
        layer = {name: value[i] for name, value in values.items()}
        normed = norm(x, layer["attention_norm"])
        outputs = []
        for head in range(config.heads):
            shared = head // group

            def projected(place, shared=shared, layer=layer, normed=normed):
                y = normed @ layer["qkv"][:, shared, place]
                return y + layer["qkv_bias"][shared, place] if config.attention_bias else y

            query, key, value = projected(head % group), projected(group), projected(group + 1)
            if config.qk_norm:
                query, key = norm(query, layer["query_norm"]), norm(key, layer["key_norm"])
            query, key = turn(query), turn(key)
            for_head = np.zeros((len(x), width))
            for t in range(len(x)):
                scores = key[: t + 1] @ query[t] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                for_head[t] = weights @ value[: t + 1] / weights.sum()
            outputs.append(for_head)
        x = x + np.concatenate(outputs, axis=1) @ layer["attention_out"]
        normed = norm(x, layer["mlp_norm"])
        gate = normed @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ layer["up"])) @ layer["down"]
    output = embedding if config.tied_embeddings else np.asarray(model.output[...], np.float64)
    return norm(x, np.asarray(model.final_norm[...], np.float64)) @ output.T


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_a_plain_implementation(shape):
    """Rows of other lengths, padded on either side, and padding that is no token at all."""
    model = make_model(**SHAPES[shape])
    rng = np.random.default_rng(1)
    tokens = rng.integers(-100, 100, (4, 7))
    mask = np.zeros((4, 7), bool)
    mask[0, :] = mask[1, 2:] = mask[2, :4] = mask[3, 3:6] = True
    tokens[mask] = rng.integers(0, 11, mask.sum())
    logits = jax.jit(lambda m, *batch: m(*batch))(model, tokens, mask)
    assert logits.dtype == jnp.float32
    for row in range(4):
        expected = numpy_logits(model, tokens[row, mask[row]])
        np.testing.assert_allclose(logits[row, mask[row]], expected, rtol=2e-4, atol=2e-5)
    assert np.isfinite(logits).all()


P, N, S, T = 3, 2, 5, 4
PROMPT_MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
LENGTHS = np.array([[4, 1], [2, 4], [3, 3]])


def make_batch(seed=2):
    rng = np.random.default_rng(seed)
    prompts = Prompts(rng.integers(0, 11, (P, S)), PROMPT_MASK)
    return prompts, rng.integers(0, 11, (P, N, T)), np.arange(T) < LENGTHS[..., None]


def joined_hidden_states(model, prompts, tokens, mask):
    """The same by a plain forward pass over each prompt followed by each completion."""
    join = functools.partial(np.concatenate, axis=1)
    whole = join([np.repeat(prompts.tokens, N, axis=0), tokens.reshape(P * N, T)])
    kept = join([np.repeat(prompts.mask, N, axis=0), mask.reshape(P * N, T)])
    states = model.hidden_states(whole, kept)
    rows = []
    for row in range(P * N):
        last = np.flatnonzero(PROMPT_MASK[row // N])[-1]
        rows.append(jnp.concatenate([states[row, last][None], states[row, S : S + T - 1]]))
    return jnp.stack(rows).reshape(P, N, T, -1)


@pytest.fixture(scope="module", params=[False, True], ids=["keep", "remat"])
def states_and_gradients(request):
    """Both ways to compute states of completions, with gradients of the same random form."""
    model = make_model(qk_norm=True, attention_bias=True, remat=request.param)
    prompts, tokens, mask = make_batch()
    weights = np.random.default_rng(3).normal(size=(P, N, T, 12)) * mask[..., None]

    def results(model, hidden_states):
        states = hidden_states(model, prompts, tokens, mask)
        return jnp.sum(states * weights), states

    return [
        nnx.jit(nnx.value_and_grad(functools.partial(results, hidden_states=f), has_aux=True))(
            model
        )
        for f in (Transformer.completion_hidden_states, joined_hidden_states)
    ]


def test_completion_states_are_those_of_the_joined_sequences(states_and_gradients):
    (((_, shared), _), ((_, joined), _)) = states_and_gradients
    _, _, mask = make_batch()
    np.testing.assert_allclose(shared[mask], joined[mask], rtol=1e-4, atol=1e-5)


def test_completion_states_have_the_gradient_of_the_joined_sequences(states_and_gradients):
    ((_, shared), (_, joined)) = states_and_gradients
    assert len(jax.tree.leaves(shared)) == 12
    for ours, theirs in zip(jax.tree.leaves(shared), jax.tree.leaves(joined), strict=True):
        scale = np.abs(theirs).max()
        assert scale > 0.01
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale)


def test_gradients_of_kernels_are_finite_differences():
    """The product's hand-written gradient, for kernels that widen and that narrow."""
    model = make_model()
    prompts, tokens, mask = make_batch()
    weights = np.random.default_rng(4).normal(size=(P, N, T, 12)) * mask[..., None]

    @nnx.jit
    def loss(model):
        return jnp.sum(model.completion_hidden_states(prompts, tokens, mask) * weights)

    gradients = nnx.grad(loss)(model).layers
    rng = np.random.default_rng(5)
    for name in ("qkv", "attention_out", "up", "down"):
        kernel, values = getattr(model.layers, name), getattr(model.layers, name)[...]
        direction = rng.normal(size=values.shape).astype(np.float32)
        step = 2e-3
        kernel[...] = values + step * direction
        above = loss(model)
        kernel[...] = values - step * direction
        slope = (above - loss(model)) / (2 * step)
        kernel[...] = values
        expected = jnp.sum(gradients[name][...] * direction)
        np.testing.assert_allclose(slope, expected, rtol=2e-2, atol=2e-2)


def test_one_token_of_completion():
    """Nothing of it runs through the layers: only the prompt's last state predicts it."""
    model = make_model()
    prompts, tokens, mask = make_batch()
    states = model.completion_hidden_states(prompts, tokens[..., :1], mask[..., :1])
    longer = model.completion_hidden_states(prompts, tokens, mask)
    np.testing.assert_allclose(states, longer[:, :, :1], rtol=1e-5, atol=1e-6)


def test_neighbours_and_padding_change_nothing():
    model = make_model()
    prompts, tokens, mask = make_batch()
    states = model.completion_hidden_states(prompts, tokens, mask)
    alone = Prompts(
        np.pad(prompts.tokens[1:2], [(0, 0), (3, 2)], constant_values=7),
        np.pad(prompts.mask[1:2], [(0, 0), (3, 2)]),
    )
    single = model.completion_hidden_states(alone, tokens[1:2, 1:], mask[1:2, 1:])
    np.testing.assert_allclose(single[0, 0], states[1, 1], rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_where_rows_are_padding():
    """A row of padding alone has nothing to attend to."""
    model = make_model()
    mask = np.array([[True, False, False], [False, False, False]])

    def loss(model):
        return jnp.sum(model(np.zeros((2, 3), int), mask)[0, 0] ** 2)

    gradients = nnx.grad(loss)(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16(param_dtype):
    """Near the same parameters in float32, with logits, and gradients, in the right dtypes."""
    fields = {"qk_norm": True, "attention_bias": True, "param_dtype": param_dtype}
    model = make_model(dtype="bfloat16", **fields)
    wide = make_model(**fields)
    prompts, tokens, mask = make_batch()
    states = model.completion_hidden_states(prompts, tokens, mask)
    logits = model.logits(states)
    assert states.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    expected = wide.logits(wide.completion_hidden_states(prompts, tokens, mask))
    error = np.abs(logits - expected)[mask]
    # Eight bits of mantissa, and a few dozen roundings that do not add up.
    assert error.max() < 0.05 * np.abs(expected[mask]).max()
    assert error.max() > 1e-4
    gradients = nnx.grad(lambda m: jnp.sum(m.completion_hidden_states(prompts, tokens, mask)))(
        model
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(param_dtype)}


def test_named_sizes_have_as_many_parameters_as_they_say():
    sizes = {"nano": 0.3e6, "tiny": 1e6, "60m": 56e6, "0.5b": 0.36e9, "1b": 0.97e9}
    assert sizes.keys() == SIZES.keys()
    for size, expected in sizes.items():
        config = make_config(size, vocab_size=1, context_length=1)
        model = nnx.eval_shape(lambda config=config: Transformer(config, rngs=nnx.Rngs(0)))
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.layers)))
        assert count == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "layers to be a positive integer, got 0"),
        ({"hidden": 12.0}, "hidden to be a positive integer, got 12.0"),
        ({"mlp": True}, "mlp to be a positive integer, got True"),
        ({"kv_heads": 3}, "kv_heads to divide heads = 4, got kv_heads = 3"),
        ({"head_dim": 5}, "even head_dim, for rotary positions, got 5"),
        ({"head_dim": 0}, "even head_dim, for rotary positions, got 0"),
        ({"head_dim": None, "hidden": 10}, "heads to divide hidden = 10 .* got heads = 4"),
        ({"head_dim": None, "hidden": 20}, "even head_dim, for rotary positions, got 5"),
        ({"dtype": "float16"}, "dtype to be one of .* got 'float16'"),
        ({"param_dtype": "int8"}, "param_dtype to be one of .* got 'int8'"),
        ({"rope_theta": 0.0}, "positive rope_theta, got 0.0"),
        ({"rope_scaling": {"factor": 8}}, "rope_scaling to be a Llama3Rope or None, got {'factor"),
        ({"norm_epsilon": float("nan")}, "positive norm_epsilon, got nan"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**TINY, **fields})


def test_make_config_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"size to be one of .* got 'huge'"):
        make_config("huge", vocab_size=8, context_length=8)
    with pytest.raises(ValueError, match=r"overrides to be fields .* got 'head_dims'"):
        make_config("tiny", vocab_size=8, context_length=8, head_dims=3)


ONES = np.ones((2, 3), bool)


@pytest.mark.parametrize(
    ("tokens", "mask", "error", "message"),
    [
        (np.zeros((2, 3)), ONES, TypeError, "tokens .* to be integers, got float"),
        (np.zeros((2, 3), int), ONES * 1, TypeError, "mask .* to be boolean, got int"),
        (np.zeros(3, int), ONES[0], ValueError, r"shape \[B, T\] .* got \[3\]"),
        (np.zeros((2, 0), int), ONES[:, :0], ValueError, r"empty axis, got \[2, 0\]"),
        (np.zeros((2, 3), int), ONES[:1], ValueError, r"shape \[2, 3\] .* got \[1, 3\]"),
        (np.zeros((1, 17), int), np.ones((1, 17), bool), ValueError, "= 16 tokens .* got 17"),
    ],
)
def test_hidden_states_refuse(tokens, mask, error, message):
    with pytest.raises(error, match=message):
        make_model().hidden_states(tokens, mask)


def test_completion_hidden_states_refuse():
    model = make_model()
    prompts, tokens, mask = make_batch()
    with pytest.raises(ValueError, match="got 2 groups for 3 prompts"):
        model.completion_hidden_states(prompts, tokens[:2], mask[:2])
    with pytest.raises(ValueError, match=r"shape \[P, N, T\]"):
        model.completion_hidden_states(prompts, tokens[0], mask[0])
    long = np.zeros((P, N, 12), int)
    with pytest.raises(ValueError, match=r"context_length = 16 .* got 5 \+ 12"):
        model.completion_hidden_states(prompts, long, long == 0)
    empty = Prompts(prompts.tokens, prompts.mask & (np.arange(P) != 2)[:, None])
    with pytest.raises(ValueError, match="one token in every prompt, got none in 2"):
        model.completion_hidden_states(empty, tokens, mask)
