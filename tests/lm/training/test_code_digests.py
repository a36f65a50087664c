"""One function is told from another by what it says, one optimizer by what it holds."""

import functools
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from maxpo.lm.tasks.verifiers import exact_verifier
from maxpo.lm.training._code_digests import code_digest, value_digest


def right(problem, text):
    """Whether it is right."""
    return float(text == problem.answer)  # A comment.


def the_same(name):
    def right(problem, text):
        return float(text == problem.answer)

    right.__qualname__ = name
    return right


def wrong(problem, text):
    return float(text != problem.answer)


class Scorer:
    def __call__(self, problem, text):
        return float(text == problem.answer)


def test_a_function_is_what_it_says():
    digests = [code_digest(each) for each in (right, the_same("other"), functools.partial(right))]
    assert len(set(digests)) == 1
    assert digests[0].startswith("sha256:")
    assert code_digest(wrong) not in (digests[0], "")
    assert code_digest(lambda problem, text: 1.0) != code_digest(lambda problem, text: 0.0)
    assert code_digest(Scorer()) not in (digests[0], "")
    # The name says all of what Python has no code of, and of what a library brings.
    assert code_digest(len) == code_digest(exact_verifier) == ""


OPTIMIZERS = {
    "rate": lambda x=1e-3: optax.adamw(x),
    "schedule": lambda x=100: optax.sgd(optax.cosine_decay_schedule(0.1, x)),
    "own schedule": lambda x=0.5: optax.sgd(lambda step: x**step),
    "chain": lambda x=1.0: optax.chain(optax.clip_by_global_norm(x), optax.scale(-1)),
    "array": lambda x=1.0: optax.sgd(lambda step: np.array([x, 2.0])[step]),
    "key": lambda x=0: optax.add_noise(0.1, 0.5, key=jax.random.key(int(x))),
    "mask": lambda x=1.0: optax.masked(optax.sgd(x), {"a": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_what_it_holds(name):
    make = OPTIMIZERS[name]
    assert value_digest(make()) == value_digest(make())
    assert value_digest(make()) != value_digest(make(7))
    others = [value_digest(other()) for other in OPTIMIZERS.values()]
    assert len(set(others)) == len(others)


def test_digests_are_those_of_any_process():
    program = (
        "import optax, test_code_digests as test\n"
        "from maxpo.lm.training._code_digests import code_digest, value_digest\n"
        "print(code_digest(test.right), value_digest(optax.adamw(1e-3)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]]),
            "PYTHONHASHSEED": "7",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [code_digest(right), value_digest(optax.adamw(1e-3))]


def test_a_function_that_holds_itself_has_a_digest():
    def loops(step):
        return loops(step)

    assert value_digest(loops).startswith("sha256:")
