"""GPTQ against the published recursion in float64, and biases that take back a shift."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant import (
  correct_biases,
  dequantize,
  dequantize_params,
  gptq,
  is_qtensor,
  quantize,
  quantize_params,
)
from kdjax.traced import observe_inputs

RNG = np.random.default_rng(0)


def linear(params, x):
  return x @ jnp.asarray(params["kernel"])


def problem(inputs=32, outputs=6, rows=256):
  """Weights, and inputs of few directions, as those of trained layers are."""
  x = RNG.normal(size=(rows, 4)) @ RNG.normal(size=(4, inputs)) + 0.3 * RNG.normal(
    size=(rows, inputs)
  )
  params = {"kernel": jnp.asarray(RNG.normal(size=(inputs, outputs)), jnp.float32)}
  x = jnp.asarray(x, jnp.float32)
  return params, x, observe_inputs(linear, params, x)


def gptq_oracle(w, h, q, damping, order):
  """Rows one by one, the inverse of what is left by elimination, in float64."""
  w, h = np.float64(w)[order], np.float64(h)[order][:, order]
  scale = np.repeat(np.float64(q.scale), w.shape[0] // q.scale.shape[0], 0)[order]
  zero = np.zeros_like(scale)
  if q.zero is not None:
    zero = np.repeat(np.float64(q.zero), w.shape[0] // q.zero.shape[0], 0)[order]
  high = 2 ** (q.bits - 1) - 1
  low = -high - (q.zero is not None)
  rest = np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(len(h)))
  out = np.zeros_like(w)
  for k in range(len(w)):
    values = np.clip(np.round(w[k] / scale[k]) + zero[k], low, high)
    out[k] = (values - zero[k]) * scale[k]
    w -= np.outer(rest[:, k], (w[k] - out[k]) / rest[k, k])
    rest = rest - np.outer(rest[:, k], rest[k]) / rest[k, k]
  return out[np.argsort(order)]


@pytest.mark.parametrize(
  "options",
  [
    {"bits": 4},
    {"bits": 4, "ordered": False, "block": 8},
    {"bits": 4, "group": 8, "affine": True},
    {"bits": 8, "block": 16},
  ],
)
def test_gptq_follows_the_paper(options):
  params, _, observed = problem()
  found = gptq(params, observed, damping=0.05, **options)["kernel"]
  rest = {k: v for k, v in options.items() if k in ("bits", "group", "affine")}
  nearest = quantize(params["kernel"], axis=0, **rest)
  np.testing.assert_array_equal(found.scale, nearest.scale)
  total = np.asarray(observed["kernel"].value.total)
  order = np.arange(32)
  if options.get("ordered", True):
    order = np.argsort(-np.diag(total), kind="stable")
  expected = gptq_oracle(params["kernel"], total, nearest, 0.05, order)
  away = np.abs(np.asarray(dequantize(found)) - expected) / np.asarray(
    np.repeat(nearest.scale, 32 // nearest.scale.shape[0], 0)
  )
  # Where float32 rounds a half the other way, all that follows makes up for it differently.
  assert np.mean(away < 0.01) > 0.9


def test_gptq_beats_rounding_to_nearest():
  params, x, observed = problem(64, 16, 512)
  wanted = linear(params, x)
  error = lambda q: float(jnp.mean((x @ dequantize(q["kernel"]) - wanted) ** 2))  # noqa: E731
  for options in ({"bits": 8}, {"bits": 4}, {"bits": 4, "group": 16}, {"bits": 4, "affine": True}):
    nearest = quantize_params(params, **options)
    assert error(gptq(params, observed, **options)) < 0.3 * error(nearest)


def test_stock_layers_keep_their_shapes_and_gain():
  module = nn.Sequential([nn.MultiHeadDotProductAttention(num_heads=2), nn.Dense(3)])
  x = jnp.asarray(RNG.normal(size=(8, 5, 8)), jnp.float32)
  params = module.init(jax.random.key(0), x)
  observed = observe_inputs(module.apply, params, x)
  found = gptq(params, observed, bits=4)
  kernels = [leaf for leaf in jax.tree.leaves(found, is_leaf=is_qtensor) if is_qtensor(leaf)]
  assert [k.bits for k in kernels] == [4] * 5
  assert found["params"]["layers_0"]["out"]["kernel"].scale.shape == (1, 1, 8)
  wanted = module.apply(params, x)
  error = lambda p: float(jnp.mean((module.apply(dequantize_params(p), x) - wanted) ** 2))  # noqa: E731
  nearest = quantize_params(params, bits=4, axis_rule=lambda path, leaf: rule(observed, path))
  assert error(found) < error(nearest)


def rule(tree, path):
  for key in path:
    tree = tree[key]
  return tree.axes if tree is not None else -1


def test_biases_take_back_the_mean():
  module, x = nn.Dense(6), jnp.asarray(RNG.normal(size=(64, 24)) + 2, jnp.float32)
  params = module.init(jax.random.key(0), x)
  observed = observe_inputs(module.apply, params, x)
  nearest = quantize_params(params, bits=4)
  better = correct_biases(params, nearest, observed)
  shift = lambda p: np.abs((module.apply(p, x) - module.apply(params, x)).mean(0))  # noqa: E731
  assert shift(nearest).max() > 1e-2
  assert shift(better).max() < 1e-5
  # Without a bias beside it a weight changes nothing.
  bare = {"params": {"kernel": params["params"]["kernel"]}}
  same = correct_biases(bare, quantize_params(bare), {"params": {"kernel": None}})
  assert set(same["params"]) == {"kernel"}
