"""Settings for every test."""

import importlib.metadata
import os
import tempfile

import hypothesis

# Compiling is most of what tests do. Without LLVM's optimizations it takes two thirds of the time,
# and half of the rest without MLIR's fusions, where jaxlib has that flag: XLA ends a process that
# passes one which it does not know. Before any test asks JAX for a device; to test what users run,
# set XLA_FLAGS="".
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Compiling dominates the first example of a property, so a deadline would only measure that.
# Fixed seeds: a run that fails can be repeated.
hypothesis.settings.register_profile("maxpo", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("maxpo")

# Begun last, the other workers of xdist would wait for these. One worker does all of a file, whose
# tests share what took long to make (--dist=loadfile).
LONGEST = (
    *("test_processes", "test_parallel", "test_links", "test_lm", "test_lm_centering", "test_door"),
    *("test_trainer", "test_transformer", "test_experiments", "test_estimators", "test_lm_scaling"),
    *("test_verification", "test_runs", "test_unbiasedness", "test_update", "test_lora"),
)


def pytest_configure(config):
    """What one test has compiled, the others and the programs that they start read.

    In a folder that goes with the tests: none leaves programs in the home of whoever runs it. Who
    runs several parts of the tests may name one for all.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # It is, in the workers of xdist.
        folder = tempfile.TemporaryDirectory(prefix="compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
