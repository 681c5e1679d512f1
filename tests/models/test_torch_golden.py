"""Blocks and recurrent layers against PyTorch's own; see tests/golden/torch_models.py."""

import importlib.util
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.recurrent import GRU
from kdjax.models.transformer import Block

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_models.npz"


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN, allow_pickle=False) as file:
    return dict(file)


def params_of(golden, prefix):
  params = {}
  for path, value in golden.items():
    if path.startswith(prefix + "/"):
      _, *middle, last = path.split("/")
      node = params
      for name in middle:
        node = node.setdefault(name, {})
      node[last] = jnp.asarray(value)
  return params


def run(layer, params, x, *rest):
  """Output, and the gradients of its sum of squares."""

  def loss(params, x):
    y = layer.apply({"params": params}, x, *rest)
    y = y[0] if isinstance(y, tuple) else y
    return jnp.sum(y * y), y

  (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
  return y, *grads


@pytest.mark.parametrize("name", ["causal", "both"])
def test_block_equals_torch_encoder_layer(golden, name):
  causal = name == "causal"
  block = Block(2, 4, 12, causal, nn.relu if causal else nn.gelu, 0.0, 8)
  segments = jnp.ones(golden["x"].shape[:2], jnp.int32)
  y, dparams, dx = run(block, params_of(golden, name), golden["x"], segments)
  np.testing.assert_allclose(y, golden[f"{name}_y"], atol=1e-5)
  np.testing.assert_allclose(dx, golden[f"{name}_dx"], rtol=1e-4, atol=1e-4)
  dquery = dparams["attention"]["query"]["kernel"]
  np.testing.assert_allclose(dquery, golden[f"{name}_dquery"], rtol=1e-4, atol=1e-4)


def test_gru_equals_torch(golden):
  start = jnp.zeros(golden["x"].shape[:2], bool).at[:, 0].set(True)
  y, dparams, _ = run(GRU(5), params_of(golden, "gru"), golden["x"], start)
  np.testing.assert_allclose(y, golden["gru_y"], atol=1e-5)
  np.testing.assert_allclose(
    dparams["recurrent_kernel"], golden["gru_drecurrent"], rtol=1e-4, atol=1e-4
  )


def test_golden_file_says_where_it_comes_from(golden):
  assert str(golden["torch"]).startswith("2.13.0")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_golden_file_is_what_torch_computes_now(golden, tmp_path):
  script = tmp_path / "torch_models.py"
  script.write_text(GOLDEN.with_suffix(".py").read_text())
  subprocess.run([sys.executable, str(script)], check=True)
  with np.load(script.with_suffix(".npz"), allow_pickle=False) as file:
    assert set(file) == set(golden)
    for name, value in file.items():
      if name != "torch":
        np.testing.assert_allclose(value, golden[name], atol=1e-5)
