"""Optimizers by name against their formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from maxpo import training
from maxpo.lm.model.sharding import RULES
from maxpo.lm.training.named_optimizers import check_optimizer, check_rules, parse_optimizer
from maxpo.lm.training.optimizer import make_optimizer

RATE, DECAY = 0.25, 0.5
DTYPES = ("float32", "bfloat16")
SHAPES = {
    "embedding": (3, 4),
    "final_norm": (4,),
    "qkv": (2, 4, 2, 3, 2),  # layer, hidden, kv head, query, head_dim
    "down": (2, 6, 4),
}
DECAYING = ("embedding", "qkv", "down")


def settings(optimizer, **changes):
    fields = {"optimizer": optimizer, "max_gradient_norm": 1e9, "b2": 0.9, "weight_decay": DECAY}
    return ConfigDict(fields | changes)


def draw(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def trained(config, params, gradients):
    """Parameters after a step with each of the gradients; every step at another rate."""

    @jax.jit
    def step(state, gradient, rate):
        return training.apply_gradients(state, gradient, make_optimizer(config, rate, rules=RULES))

    like = make_optimizer(config, 0.0, rules=RULES)
    state = training.init_state(jax.tree.map(jnp.asarray, params), like)
    for number, gradient in enumerate(gradients):
        state = step(state, gradient, jnp.float32(RATE / (number + 1)))
    assert step._cache_size() == 1
    return state


def expected(params, gradients, direction_of):
    """The same from directions: one function for each name, of a gradient and the step from 1."""
    found = {}
    for name, weights in params.items():
        direction, w = direction_of(name), weights.astype(np.float64)
        for number, gradient in enumerate(gradients, 1):
            decay = DECAY * w if name in DECAYING else 0
            w = w - RATE / number * (direction(gradient[name].astype(np.float64), number) + decay)
        found[name] = w
    return found


class Adam:
    def __init__(self, b1, b2):
        self.b1, self.b2, self.m, self.v = b1, b2, 0.0, 0.0

    def __call__(self, g, t):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        return self.m / (1 - self.b1**t) / (np.sqrt(self.v / (1 - self.b2**t)) + 1e-8)


class Lion:
    def __init__(self, b1, b2):
        self.b1, self.b2, self.m = b1, b2, 0.0

    def __call__(self, g, t):
        sign = np.sign(self.b1 * self.m + (1 - self.b1) * g)
        self.m = self.b2 * self.m + (1 - self.b2) * g
        return sign


class Adafactor:
    """Rows and columns are the last two axes; the paper's sums, where optax has means."""

    def __init__(self, decay, *, factored):
        self.decay, self.factored, self.v, self.rows, self.columns = decay, factored, 0, 0, 0

    def __call__(self, g, t):
        b2 = 1 - t**-self.decay
        square = g**2 + 1e-30
        if self.factored:
            self.rows = b2 * self.rows + (1 - b2) * square.sum(-1, keepdims=True)
            self.columns = b2 * self.columns + (1 - b2) * square.sum(-2, keepdims=True)
            v = self.rows * self.columns / self.rows.sum(-2, keepdims=True)
        else:
            v = self.v = b2 * self.v + (1 - b2) * square
        u = g / np.sqrt(v)
        return u / max(1, np.sqrt(np.mean(u**2)))


class Muon:
    """Of arrays `[..., in, out]`; Nesterov's momentum with optax's corrections of both terms."""

    def __init__(self, momentum):
        self.b, self.m = momentum, 0.0

    def __call__(self, g, t):
        self.m = self.b * self.m + (1 - self.b) * g
        looking_ahead = self.b * self.m / (1 - self.b ** (t + 1)) + (1 - self.b) * g / (
            1 - self.b**t
        )
        flat = looking_ahead.reshape(-1, *g.shape[-2:])
        steps = [0.2 * np.sqrt(max(x.shape)) * newton_schulz(x) for x in flat]
        return np.stack(steps).reshape(g.shape)


def newton_schulz(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class MuonOfHeads(Muon):
    """Of qkv: each of its queries, keys and values of all heads is a matrix."""

    def __call__(self, g, t):
        layers, hidden, heads, roles, width = g.shape
        matrices = g.transpose(0, 3, 1, 2, 4).reshape(layers, roles, hidden, heads * width)
        step = super().__call__(matrices, t)
        return step.reshape(layers, roles, hidden, heads, width).transpose(0, 2, 3, 1, 4)


def muon(name):
    if name == "qkv":
        return MuonOfHeads(0.9)
    return Muon(0.9) if name == "down" else Adam(0.9, 0.9)


@pytest.mark.parametrize(
    ("spec", "b2", "direction_of"),
    [
        ("adamw:b1=0.8", 0.9, lambda name: Adam(0.8, 0.9)),
        ("lion:b1=0.9,b2=0.5", 0.95, lambda name: Lion(0.9, 0.5)),
        ("lion", 0.95, lambda name: Lion(0.9, 0.99)),
        ("adafactor:decay=0.7", 0.95, lambda name: Adafactor(0.7, factored=False)),
        ("muon:momentum=0.9", 0.9, muon),
    ],
)
def test_steps_are_those_of_the_formulas(spec, b2, direction_of):
    params, gradients = draw(0), [draw(seed) for seed in (1, 2, 3)]
    found = trained(settings(spec, b2=b2), params, gradients).params
    for name, weights in expected(params, gradients, direction_of).items():
        np.testing.assert_allclose(found[name], weights, rtol=2e-4, atol=2e-5, err_msg=name)


def test_adafactor_keeps_rows_and_columns_of_large_matrices():
    shapes = {"down": (2, 130, 128)}
    params, gradients = draw(0, shapes), [draw(seed, shapes) for seed in (1, 2)]
    state = trained(settings("adafactor", b2=0.95), params, gradients)
    weights = expected(params, gradients, lambda name: Adafactor(0.8, factored=True))
    np.testing.assert_allclose(state.params["down"], weights["down"], rtol=2e-4, atol=2e-5)
    sizes = sorted(x.size for x in jax.tree.leaves(state.opt_state))
    assert sizes == [1, 1, 2 * 128, 2 * 130]


def test_muon_makes_matrices_nearly_orthogonal():
    params, gradient = jax.tree.map(np.zeros_like, draw(0)), draw(1)
    state = trained(settings("muon", weight_decay=0.0), params, [gradient])
    for layer in range(2):
        step = np.asarray(state.params["down"][layer]) / -RATE / (0.2 * np.sqrt(6))
        left, values, right = np.linalg.svd(gradient["down"][layer], full_matrices=False)
        turned = left.T @ step @ right.T
        # The polynomial's five iterations take every singular value between 0.5 and 1.5.
        assert np.all((np.diag(turned) > 0.5) & (np.diag(turned) < 1.5)), values
        np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-4)


def test_the_default_is_adamw_of_optax_bit_for_bit():
    config, params, gradients = settings("adamw", max_gradient_norm=1.0), draw(0), draw(1)
    ours = make_optimizer(config, RATE, rules=RULES)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            RATE, b2=0.9, weight_decay=DECAY, mask={name: name in DECAYING for name in SHAPES}
        ),
    )
    first, second = (training.init_state(params, optimizer) for optimizer in (ours, theirs))
    for _ in range(2):
        first = training.apply_gradients(first, gradients, ours)
        second = training.apply_gradients(second, gradients, theirs)
    assert jax.tree.structure(first.opt_state) == jax.tree.structure(second.opt_state)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_first_moments_in_bfloat16(name):
    params, gradients = draw(0), [draw(1)]
    whole, half = (
        trained(settings(f"{name}:moments={dtype}", b2=0.95), params, gradients) for dtype in DTYPES
    )

    def sizes(state):
        arrays = [x for x in jax.tree.leaves(state.opt_state) if x.size > 3]
        return {dtype: sum(x.size for x in arrays if x.dtype == dtype) for dtype in DTYPES}

    n, of_matrices = 12 + 4 + 96 + 48, 96 + 48
    second = {"adamw": n, "lion": 0, "muon": n - of_matrices}[name]
    assert sizes(whole) == {"float32": n + second, "bfloat16": 0}
    assert sizes(half) == {"float32": second, "bfloat16": n}
    # The first direction is computed before the moments are rounded.
    for ours, theirs in zip(
        jax.tree.leaves(half.params), jax.tree.leaves(whole.params), strict=True
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("b2", "falls"), [(0.999, False), (0.95, True)])
def test_second_moments_in_bfloat16_would_not_fall(b2, falls):
    """Which is why there are none: without any gradient a moment should go to 0."""
    moments = jnp.linspace(1, 2, 129).astype(jnp.bfloat16)  # All there are of this exponent.
    after = (b2 * moments.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(after < moments, falls)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adam", "rl.optimizer: expected one of adamw, lion, adafactor, muon, got 'adam'"),
        ("", "expected one of .*, got ''"),
        ("adamw:", "expected NAME.*each option once, got 'adamw:'"),
        ("adamw:b1=0.9,b1=0.8", "each option once"),
        ("adamw:b2=0.99", "options of adamw among b1, moments, got 'b2'"),
        ("lion:b1=1.0", "expected a number from 0 to below 1 as b1, got '1.0'"),
        ("muon:momentum=-0.5", "from 0 to below 1 as momentum, got '-0.5'"),
        ("muon:momentum=nan", "from 0 to below 1 as momentum, got 'nan'"),
        ("lion:moments=float16", "moments=float32 or bfloat16, got 'float16'"),
        ("adafactor:moments=bfloat16", "options of adafactor among decay, got 'moments'"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_optimizer("rl.optimizer", spec)


def test_a_b2_that_is_not_read_is_refused():
    check_optimizer("rl", settings("muon", b2=0.9))
    check_optimizer("rl", settings("lion", b2=0.95))
    message = "sft.b2: expected the default of 0.95 for sft.optimizer=lion, .* got 0.9"
    with pytest.raises(ValueError, match=message):
        check_optimizer("sft", settings("lion", b2=0.9))


def test_muon_needs_matrices():
    named = parse_optimizer("optimizer", "muon")
    check_rules("optimizer", named, RULES)
    for rules in (None, {"final_norm": RULES["final_norm"]}):
        with pytest.raises(ValueError, match="optimizer: expected a policy for muon"):
            check_rules("optimizer", named, rules)
