"""Settings for every test."""

import os

import hypothesis

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

# Begun last, the other workers of xdist would wait for these. One worker does all of a file, whose
# tests share what took long to make (--dist=loadfile).
LONGEST = (
    *("test_processes", "test_parallel", "test_lm", "test_lm_centering", "test_door"),
    *("test_trainer", "test_transformer", "test_experiments", "test_estimators", "test_lm_scaling"),
    *("test_verification", "test_runs", "test_unbiasedness", "test_update", "test_lora"),
)


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
