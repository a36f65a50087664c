"""The maze study's machinery, against naive computations and an exact random walk."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from flax import nnx

from maxpo.mazes.environment import rollout
from maxpo.mazes.maze import ACTIONS
from maxpo.mazes.policy import GridPolicy
from maxpo.runs import load_config
from maxpo.studies import maze, maze_figures

METHODS = ("rloo", "grpo:entropy=sweep", "maxpo:k=2")
SWEPT, MAXPO = "grpo entropy=sweep", "maxpo k=2"


def small_config(**fields):
    config = load_config("configs/maze.py")
    config.update(
        seeds=2, methods=METHODS, group_size=4, mazes=2, updates=1, evaluate_every=1, eval_k=2
    )
    config.sweep.update(learning_rates=(0.003, 0.01), seeds=2, updates=1)
    config.evaluation.update(mazes=8, samples=16, curve_samples=64)
    config.task.update(size=5, radius=1, horizon=8, values=(0.5, 1.0))
    config.policy.hidden = (3,)
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def study():
    return maze.make_study(small_config())


@pytest.fixture(scope="module")
def keys():
    return maze.run_keys(small_config())


def perturb(state, size=1.0):
    """The state with a policy that is not uniform."""
    leaves, tree = jax.tree.flatten(state.params)
    noise = jax.random.split(jax.random.key(5), len(leaves))
    return state._replace(
        params=tree.unflatten(
            leaf + size * jax.random.normal(key, leaf.shape)
            for key, leaf in zip(noise, leaves, strict=True)
        )
    )


def one_of(tree, index=0):
    return jax.tree.map(lambda x: x[index], tree)


def make_policy(study, params):
    policy = GridPolicy(
        study.environment.reset(one_of(study.test))[0], len(ACTIONS), hidden=(3,), rngs=nnx.Rngs(0)
    )
    nnx.update(policy, params)
    return policy


def act_of(policy):
    def act(key, observation):
        actions = policy.sample(key, observation)
        return actions, (policy.log_prob(observation, actions), policy.entropy(observation))

    return act


def naive_loss(policy, episodes, advantages, entropy):
    """Step by step, with nothing of `maxpo.losses`."""
    p = jax.nn.softmax(policy.logits(episodes.observations))
    chosen = jnp.sum(p * jax.nn.one_hot(episodes.actions, len(ACTIONS)), axis=-1)
    value = jnp.sum(jnp.where(episodes.mask, advantages * jnp.log(chosen), 0))
    bonus = jnp.sum(jnp.where(episodes.mask, -jnp.sum(p * jnp.log(p), axis=-1), 0))
    return -(value + entropy * bonus) / advantages.size


@pytest.fixture(scope="module")
def episodes(study, keys):
    """A policy that is not uniform, and some of its episodes."""
    state = one_of(perturb(study.init(keys)))
    policy = make_policy(study, state.params)
    sample = jax.jit(lambda mazes: rollout(study.environment, act_of(policy), mazes, keys[0], 4))
    drawn = sample(jax.tree.map(lambda x: x[:3], study.test))
    assert 0.3 < np.mean(drawn.mask) < 0.95  # Some end early.
    return policy, drawn


@pytest.mark.parametrize("kind", maze.LOSSES)
def test_gradient_is_the_naive_one_where_the_policy_has_not_moved(episodes, kind):
    policy, drawn = episodes
    advantages = jax.random.normal(jax.random.key(1), (3, 4))
    graph, params = nnx.split(policy)

    @jax.jit
    def gradients(params):
        def actual(params):
            return maze.episode_loss(nnx.merge(graph, params), drawn, advantages, 0.3, kind=kind)

        def expected(params):
            return naive_loss(nnx.merge(graph, params), drawn, advantages, 0.3)

        return jax.grad(actual)(params), jax.grad(expected)(params)

    actual, expected = gradients(params)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)) > 0.1
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", maze.LOSSES)
def test_steps_behind_the_end_count_nowhere(episodes, kind):
    policy, drawn = episodes
    graph, params = nnx.split(policy)
    advantages = jax.random.normal(jax.random.key(1), (3, 4))

    @jax.jit
    def value(drawn):
        def loss(params):
            return maze.episode_loss(nnx.merge(graph, params), drawn, advantages, 0.3, kind=kind)

        return jax.value_and_grad(loss)(params)

    def spoil(x):
        behind = ~drawn.mask.reshape(*drawn.mask.shape, *[1] * (x.ndim - 3))
        return jnp.where(behind, 1 - x, x)

    spoilt = drawn._replace(
        observations=jax.tree.map(spoil, drawn.observations),
        actions=jnp.where(drawn.mask, drawn.actions, 3 - drawn.actions),
        extras=jax.tree.map(spoil, drawn.extras),
    )
    chex.assert_trees_all_equal(value(drawn), value(spoilt))


def test_clipped_ratio_stops_where_the_policy_has_moved_far(episodes):
    """A behavior twice as unlikely: every ratio is 2, past the clip for positive advantages."""
    policy, drawn = episodes
    graph, params = nnx.split(policy)
    moved = drawn._replace(extras=(drawn.extras[0] - np.log(2), drawn.extras[1]))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return maze.episode_loss(
            nnx.merge(graph, params), moved, jnp.ones((3, 4)), 0.0, kind="clipped_ratio"
        )

    value, gradient = loss(params)
    np.testing.assert_allclose(value, -1.2 * np.mean(np.sum(drawn.mask, axis=0)), rtol=1e-5)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_an_update_is_rollout_advantage_gradient_and_step(study, keys):
    """Written out with the oracles' advantages, for the method with a bonus and for MaxPO."""
    config, environment = small_config(), study.environment
    start = perturb(study.init(keys), 0.3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))

    @jax.jit
    def act(params, key):
        # Of the first update.
        update_key = jax.random.fold_in(jax.random.fold_in(key, maze._UPDATES), 0)
        maze_key, run_key = jax.random.split(update_key)
        mazes = jax.vmap(environment.make_instance)(jax.random.split(maze_key, config.mazes))
        policy = make_policy(study, params)
        return rollout(environment, act_of(policy), mazes, run_key, config.group_size)

    @jax.jit
    def learn(params, drawn, advantages, coefficient):
        graph = nnx.graphdef(make_policy(study, params))
        gradient = jax.grad(
            lambda params: naive_loss(nnx.merge(graph, params), drawn, advantages, coefficient)
        )(params)
        changes, _ = optimizer.update(gradient, optimizer.init(params), params)
        return optax.apply_updates(params, changes)

    for name, coefficient in ((SWEPT, 0.1), (MAXPO, 0.0)):
        settings = maze.make_settings([0.01, 0.01], coefficient)
        state = study.advance(study.methods[name], settings, keys, jax.tree.map(jnp.copy, start))
        assert state.step.tolist() == [1, 1]
        spreads = []
        for seed in range(2):
            drawn = act(one_of(start, seed).params, keys[seed])
            returns = np.sum(np.asarray(drawn.rewards * drawn.mask), axis=0)
            if name == MAXPO:
                advantages = np.stack(
                    [
                        2 * (oracles.include_one(group, 2) - oracles.leave_one_out(group, 2))
                        for group in returns
                    ]
                )
            else:
                spread = returns - returns.mean(axis=1, keepdims=True)
                advantages = spread / (returns.std(axis=1, ddof=1, keepdims=True) + 1e-6)
            spreads.append(np.ptp(returns))
            expected = learn(
                one_of(start, seed).params, drawn, jnp.float32(advantages), coefficient
            )
            chex.assert_trees_all_close(one_of(state.params, seed), expected, atol=2e-5)
        assert max(spreads) > 0  # Or there was nothing to learn from.


def test_advance_gives_up_its_buffers_and_moves_nothing_to_or_from_the_host(study, keys):
    state = study.init(keys)
    settings = maze.make_settings([0.01, 0.01], 0.0)
    with jax.transfer_guard("disallow"):
        after = study.advance(study.methods["rloo"], settings, keys, state)
        again = study.advance(study.methods[MAXPO], settings, keys, after)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state, after)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(again))
    # The guard sees transfers: a number from the host is one.
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-dev"):
        study.advance(0, settings, keys, again)


def test_runs_are_paired_across_methods_and_differ_from_each_other(study, keys):
    state = study.init(keys)
    np.testing.assert_array_equal(state.params["head"]["kernel"], 0)
    first, second = state.params["hidden"][0]["kernel"][...]
    assert np.any(np.asarray(first) != np.asarray(second))
    chex.assert_trees_all_equal(state, study.init(keys))


def random_walk(instance, horizon):
    """Exact probabilities of the returns of a uniformly random policy: {return: probability}."""
    following, payoff, ends = (
        np.asarray(x) for x in (instance.following, instance.payoff, instance.ends)
    )
    at = np.zeros(len(ends))
    at[int(instance.start)] = 1
    paid = {0.0: 0.0}
    for _ in range(horizon):
        moved = np.zeros_like(at)
        for cell, action in itertools.product(np.flatnonzero(at), range(len(ACTIONS))):
            moved[following[cell, action]] += at[cell] / len(ACTIONS)
        for cell in np.flatnonzero(moved * ends):
            value = float(payoff[cell])
            paid[value] = paid.get(value, 0) + moved[cell]
        at = moved * ~ends
    paid[0.0] += at.sum()
    return paid


def test_curves_of_the_uniform_policy_are_those_of_a_random_walk(study, keys):
    """U-statistics of k out of n have a variance of at most k/n that of the best of k."""
    config = small_config()
    ks, horizon = maze.curve_ks(config), config.task.horizon
    walks = [random_walk(one_of(study.test, i), horizon) for i in range(config.evaluation.mazes)]
    curves = study.curves(study.test, keys, study.init(keys))
    metrics = study.evaluate(study.test, keys, study.init(keys))
    best = np.asarray(jax.vmap(study.environment.optimal_return)(study.test))
    optimal = [{float(v >= b): 0.0 for v in w} for w, b in zip(walks, best, strict=True)]
    for passed, walk, top in zip(optimal, walks, best, strict=True):
        for value, probability in walk.items():
            passed[float(value >= top)] += probability

    def moments_of_best(law, k):
        values = np.array(sorted(law))
        below = np.cumsum([law[value] for value in values]) ** k
        probabilities = np.diff(below, prepend=0)
        mean = values @ probabilities
        return mean, values**2 @ probabilities - mean**2

    def check(actual, laws, k, samples):
        means, variances = np.transpose([moments_of_best(law, k) for law in laws])
        error = np.sqrt(variances.sum() * k / samples / config.seeds) / len(laws)
        assert abs(np.mean(actual) - means.mean()) < 4 * error + 1e-6

    assert ks == (1, 2, 4, 8, 16, 32, 64)
    for i, k in enumerate(ks):
        check(curves["max_at_k"][:, i], walks, k, 64)
        check(curves["pass_at_k"][:, i], optimal, k, 64)
    check(metrics["mean_return"], walks, 1, 16)
    check(metrics["max_at_k"], walks, 2, 16)
    check(metrics["success"], optimal, 1, 16)
    np.testing.assert_allclose(metrics["entropy"], np.log(len(ACTIONS)), rtol=1e-5)


def test_no_set_of_mazes_or_seeds_meets_another(study):
    config = small_config()
    seen = jax.random.key_data(maze.run_keys(config)).tolist()
    swept = jax.random.key_data(maze.sweep_keys(config)).tolist()
    assert swept[:2] == swept[2:]
    assert swept[0] != swept[1]
    assert not any(key in seen for key in swept)
    assert np.any(np.asarray(study.validation.walls) != np.asarray(study.test.walls))


def test_a_sweep_tries_every_rate_with_every_seed_and_bonuses_where_there_are_any():
    grid = maze.sweep_settings(small_config())
    assert list(grid) == [
        ("rloo", 0.0),
        *((SWEPT, value) for value in (0.003, 0.01, 0.03)),
        (MAXPO, 0.0),
    ]
    tried = grid[SWEPT, 0.01]
    np.testing.assert_allclose(tried.learning_rate, [0.003, 0.003, 0.01, 0.01])
    np.testing.assert_allclose(tried.entropy, 0.01)


def test_the_best_setting_has_the_best_mean_and_is_finite():
    config = small_config(methods=("rloo", "grpo:entropy=sweep"))
    history = [
        {"phase": "sweep", "method": name, "entropy_coefficient": value, "scores": scores}
        for name, value, scores in (
            ("rloo", 0.0, [[0.1, 0.5], [0.9, float("nan")]]),
            (SWEPT, 0.003, [[0.4, 0.4], [0.1, 0.9]]),
            (SWEPT, 0.01, [[0.45, 0.46], [0.1, 0.1]]),
        )
    ]
    history.append({"phase": "train", "method": "rloo"})
    expected = {"rloo": (0.003, 0.0), SWEPT: (0.01, 0.003)}
    assert maze.best_settings(config, history) == expected
    history[0]["scores"] = [[float("nan")] * 2] * 2
    with pytest.raises(ValueError, match=r"rloo: every setting .* not finite"):
        maze.best_settings(config, history)
    single = small_config(**{"sweep.learning_rates": (0.02,), "methods": ("rloo",)})
    assert maze.best_settings(single, []) == {"rloo": (0.02, 0.0)}


def test_the_table_compares_seed_by_seed():
    config = small_config(methods=("rloo", "maxpo:k=2"))
    ks = maze.curve_ks(config)

    def curve(*at_two):
        values = np.zeros((2, len(ks)))
        values[:, 1] = at_two
        return {"max_at_k": values, "pass_at_k": values}

    curves = {"before": curve(0, 0), "rloo": curve(0.2, 0.5), MAXPO: curve(0.4, 0.6)}
    settings = {"rloo": (0.01, 0.0), MAXPO: (0.003, 0.0)}
    history = [
        {"method": name, "entropy": value, "entropy_sem": 0.1}
        for value in (1.0, 0.5)
        for name in settings
    ]
    table = maze.make_table(config, curves, settings, history)
    assert list(table) == ["before", "rloo", MAXPO]
    assert table["rloo"]["learning rate"] == 0.01
    assert table["before"]["learning rate"] is None
    np.testing.assert_allclose(table["rloo"]["max@2"], 0.35)
    np.testing.assert_allclose(table["rloo"]["max@2 minus maxpo"], -0.15)
    np.testing.assert_allclose(table["rloo"]["max@2 minus maxpo_sem"], 0.05)
    assert table[MAXPO]["entropy"] == 0.5
    assert {"max@1", "pass@2", "pass@64"} <= set(table["before"])


def test_figures(study, keys):
    config = small_config()
    state = study.init(keys)
    ks = maze.curve_ks(config)
    curve = maze.summarize_curves(study.curves(study.test, keys, state), ks)
    figure = maze_figures.curves({"rloo": curve, "maxpo": curve}, ks, 2, 0.9)
    assert [len(axis.lines) for axis in figure.axes] == [4, 3]  # The optimum on the left alone.
    row = {name: 1.0 for metric in maze.METRICS for name in (metric, f"{metric}_sem")}
    history = [{"method": "rloo", "update": update, **row} for update in (0, 1)]
    figure = maze_figures.learning_curves(history, 2)
    assert [len(axis.lines) for axis in figure.axes] == [1] * 4
    figure = maze_figures.trajectories(study, dict.fromkeys(study.methods, state), keys)
    titles = [axis.get_title().partition(":")[0] for axis in figure.axes]
    assert titles == [maze_figures.BEFORE, "rloo", SWEPT, MAXPO, "", ""]
    assert [len(axis.lines) for axis in figure.axes] == [1 + 2 * config.group_size] * 4 + [0, 0]


def test_a_walk_stays_where_a_wall_is(study):
    instance = one_of(study.test)
    actions = np.array([0, 0, 0, 1, 1, 2, 3])
    cells = [int(instance.start)]
    for action in actions:
        cells.append(int(instance.following[cells[-1], action]))
    np.testing.assert_array_equal(
        maze_figures.walk(instance, actions), np.stack(np.divmod(cells, 5), axis=1)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 2}, "'maxpo:k=2' with group_size = 2: .*N - 1 = 1"),
        ({"methods": ("maxp0",)}, "expected one of the estimators .* got 'maxp0'"),
        ({"methods": ("rloo", "rloo")}, "expected different ones, got 'rloo' twice"),
        ({"methods": ()}, "methods: expected at least one"),
        ({"methods": ("grpo:entropy=all",)}, "'grpo:entropy=all': expected a number, got 'all'"),
        ({"seeds": 1}, "seeds: expected at least 2, got 1"),
        ({"sweep.seeds": 0}, "sweep.seeds: expected at least 1, got 0"),
        ({"sweep.updates": 0}, "sweep.updates: expected more than 0 .* among 6 settings, got 0"),
        ({"sweep.learning_rates": ()}, "sweep.learning_rates: expected some above 0, got"),
        ({"sweep.entropy_coefficients": (0.0,)}, "entropy_coefficients: expected some above 0"),
        ({"evaluate_every": 2}, "updates: expected a multiple of evaluate_every = 2, got 1"),
        ({"eval_k": 17}, "eval_k: expected 1 to evaluation.samples = 16, got 17"),
        ({"loss": "ppo"}, "loss: expected one of score_function, clipped_ratio; got 'ppo'"),
        ({"epochs": 2}, "epochs: expected 1 with loss=score_function.* got 2"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm: expected more than 0, got 0.0"),
        ({"policy.kind": "cnn"}, "policy.kind: expected one of mlp, conv; got 'cnn'"),
        ({"task.name": "labyrinth"}, "task.name: expected maze or xminigrid, got 'labyrinth'"),
        ({"task.horizon": 0}, "horizon: expected at least 1 step, got 0"),
        ({"task.size": 2}, "size: expected at least 3, got 2"),
    ],
)
def test_config_mistakes(fields, message):
    with pytest.raises(ValueError, match=message):
        maze.check_config(small_config(**fields))
