"""Packaging. Settings of the tools live in pyproject.toml."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
# Read, not imported: what maxpo imports need not be there when it is built.
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "maxpo/__init__.py").read_text(), re.M)
assert VERSION is not None

# What the tests of a part need is not needed to import it: they skip where it is missing.
# Checkpoints, tokenizers, chat templates, which an older jinja2 would let out of its sandbox.
CHECKPOINTS = ["jinja2>=3.1.6", "safetensors>=0.6", "tokenizers>=0.22"]
LM = [*CHECKPOINTS, "reasoning-gym>=0.1.25"]
GGUF = [*CHECKPOINTS, "gguf>=0.17"]
# What checkpoints and speed are compared with.
HF = [*CHECKPOINTS, "torch>=2.9", "transformers>=5"]
MATH = ["math-verify>=0.9"]
MAZE = ["xminigrid>=0.9.3"]
PARQUET = ["pyarrow>=21"]
# Builds the site, which imports nothing of the library; ruff formats signatures.
DOCS = ["latex2mathml>=3.81", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0", "ruff"]
# Loggers of a run, each by its name.
TENSORBOARD = ["tensorboardX>=2.6.5"]
TRACKIO = ["trackio>=0.43"]
WANDB = ["wandb>=0.31"]
TRL = ["trl>=1.16"]
TUNIX = ["google-tunix>=0.1.7"]
TEST = [
    *GGUF,
    *LM,
    *MATH,
    *MAZE,
    *PARQUET,
    *TENSORBOARD,
    "hypothesis",
    "ipykernel",
    "nbclient",
    "nbformat",
    "networkx",
    "pytest>=8",
    "pytest-xdist",
]

setuptools.setup(
    name="maxpo",
    version=VERSION[1],
    description="Policy gradients for inference-time objectives (max@K, pass@K) in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["maxpo", "maxpo.*"]),
    package_data={"maxpo": ["py.typed"]},
    python_requires=">=3.11",
    # Floors are the oldest versions that the tests were run with.
    install_requires=[
        "absl-py>=2.5",
        "chex>=0.1.92",
        "flax>=0.12.8",
        "jax>=0.10.2",
        "matplotlib>=3.10",
        "ml_collections>=1.1",
        "numpy>=2.3",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "tqdm>=4.67",
    ],
    extras_require={
        "docs": DOCS,
        "lm": LM,
        "gguf": GGUF,
        "hf": HF,
        "math": MATH,
        "maze": MAZE,
        "parquet": PARQUET,
        "tensorboard": TENSORBOARD,
        "trackio": TRACKIO,
        "trl": TRL,
        "tunix": TUNIX,
        "wandb": WANDB,
        "test": TEST,
        "dev": [*TEST, "build", "codespell", "import-linter", "mypy", "ruff"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
