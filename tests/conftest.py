"""Settings for every test."""

import os

import hypothesis
import pytest

# Compiling is most of what tests do, and without LLVM's optimizations it takes two thirds of the
# time. Before any test asks JAX for a device; to test what users run, set XLA_FLAGS="".
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
# No test leaves programs in the home of whoever runs it. Tests of the cache switch it on.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

# Compiling dominates the first example of a property, so a deadline would only measure that.
# Fixed seeds: a run that fails can be repeated.
hypothesis.settings.register_profile("maxpo", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("maxpo")

# Their tests share what took long to make, so one worker of xdist does all of a file. The first two
# take longest: begun last, the other workers would wait for them.
ONE_WORKER = (
    *("test_processes", "test_parallel", "test_lm", "test_lm_scaling", "test_transformer"),
    *("test_trainer", "test_handover", "test_lora"),
)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too.
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in ONE_WORKER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.path.stem not in ONE_WORKER[:2])
