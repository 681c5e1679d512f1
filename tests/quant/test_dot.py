"""The integer product: exact integers, bounds, errors, the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant.dot import dot
from kdjax.quant.integer import MAX_CONTRACTION, integer_dot
from kdjax.quant.qtensor import QTensor, dequantize, quantize

pytestmark = pytest.mark.usefixtures("integers_everywhere")


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def numpy_dot(x, values, scale):
  """The formula: int64 sums of int8 products, scales after, in float64."""
  x = np.asarray(x, np.float64)
  row = np.max(np.abs(x), axis=-1, keepdims=True) / 127
  quantized = np.round(x / np.where(row == 0, 1, row)).astype(np.int64)
  return (quantized @ np.asarray(values, np.int64)) * row * np.asarray(scale, np.float64)


@pytest.mark.parametrize("shape", [(16, 64), (2, 3, 64), (256, 64)])
def test_dot_equals_float64_formula(shape):
  x, w = normal(*shape), quantize(normal(64, 48, seed=1), axis=0)
  got = jax.jit(dot)(x, w)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, numpy_dot(x, w.values, w.scale), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rdot_equals_float64_formula(rows):
  query, table = normal(rows, 48), quantize(normal(3000, 48, seed=1), axis=-1)
  expected = numpy_dot(query, table.values.T, table.scale.T)
  np.testing.assert_allclose(table.rdot(query), expected, rtol=2e-6, atol=1e-6)


def test_error_is_within_the_bound_of_both_roundings():
  x, w = normal(32, 128), normal(128, 40, seed=1)
  q = quantize(w, axis=0)
  sx = np.max(np.abs(x), -1, keepdims=True) / 127
  # |x w - x' w'| <= sum |x| s/2 + |w'| sx/2, entry by entry.
  bound = np.abs(x) @ np.broadcast_to(q.scale / 2, w.shape) + sx / 2 * np.abs(dequantize(q)).sum(0)
  assert np.all(np.abs(dot(x, q) - x @ w) <= bound * (1 + 1e-5))


def test_float_weights_are_a_plain_product_in_float32():
  x, w = normal(3, 5), normal(5, 4, seed=1)
  np.testing.assert_allclose(dot(x, w), x @ w, rtol=1e-6)
  half = dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  assert dot(x.astype(jnp.bfloat16), quantize(w, axis=0)).dtype == jnp.float32


def test_one_row_equals_the_same_row_of_many():
  x, w = normal(4, 256), quantize(normal(256, 512, seed=1), axis=0)
  np.testing.assert_array_equal(dot(x[:1], w), dot(x, w)[:1])


def test_overflow_bound():
  assert MAX_CONTRACTION == 133_144
  assert MAX_CONTRACTION * 127**2 <= 2**31 - 1 < (MAX_CONTRACTION + 1) * 127**2
  full = QTensor(jnp.full([MAX_CONTRACTION, 1], 127, jnp.int8), jnp.ones([1, 1]))
  x = jnp.ones([2, MAX_CONTRACTION])
  np.testing.assert_allclose(dot(x, full), np.full([2, 1], MAX_CONTRACTION * 127.0), rtol=1e-6)
  over = QTensor(jnp.zeros([MAX_CONTRACTION + 1, 1], jnp.int8), jnp.ones([1, 1]))
  with pytest.raises(ValueError, match="overflow int32"):
    dot(jnp.ones([2, MAX_CONTRACTION + 1]), over)


def test_bad_shapes_are_named():
  w = quantize(normal(6, 4), axis=0)
  with pytest.raises(ValueError, match="cannot contract"):
    dot(jnp.ones([2, 5]), w)
  with pytest.raises(ValueError, match="contraction axis"):
    dot(jnp.ones([2, 6]), quantize(normal(6, 4), axis=1))
  with pytest.raises(ValueError, match="contraction axis"):
    w.rdot(jnp.ones([2, 4]))


def test_nan_row_stays_visible_and_alone():
  x = normal(4, 64).at[1, 3].set(jnp.nan)
  y = dot(x, quantize(normal(64, 8), axis=0))
  assert np.isnan(y[1]).all()
  assert np.isfinite(y[jnp.array([0, 2, 3])]).all()


def test_zero_rows_and_no_rows():
  w = quantize(normal(64, 8), axis=0)
  assert dot(jnp.zeros([3, 64]), w).tolist() == np.zeros([3, 8]).tolist()
  assert dot(jnp.zeros([0, 64]), w).shape == (0, 8)


@pytest.mark.parametrize("rows", [1, 6])
def test_gradients_are_those_of_the_dequantised_product(rows):
  x, w, g = normal(rows, 256), quantize(normal(256, 600, seed=1), axis=0), normal(rows, 600, seed=2)
  dx, dscale = jax.grad(
    lambda x, scale: jnp.sum(g * dot(x, QTensor(w.values, scale))), argnums=(0, 1)
  )(x, w.scale)
  values = np.asarray(w.values, np.float64)
  np.testing.assert_allclose(dx, g @ (values * w.scale).T, rtol=1e-4, atol=1e-4)
  row = np.max(np.abs(x), axis=-1, keepdims=True) / 127
  seen = np.round(np.asarray(x, np.float64) / row) * row  # What was multiplied.
  expected = ((seen @ values) * g).sum(0, keepdims=True)
  np.testing.assert_allclose(dscale, expected, rtol=1e-3, atol=1e-2)


def test_integer_dot_takes_a_scale_per_tensor():
  x, w = normal(4, 64), quantize(normal(64, 8), axis=None)
  got = integer_dot(x, w.values, w.scale, axis=0)
  np.testing.assert_allclose(got, numpy_dot(x, w.values, w.scale), rtol=2e-6, atol=1e-6)
