"""QTensor, quantize, dequantize and fake_quant: bounds, idempotence, gradients, stock Linen."""

import flax.linen as nn
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant.qtensor import QTensor, dequantize, fake_quant, quantize
from kdjax.tree import is_matrix
from kdjax.types import FactoredLogits

AXES = [0, 1, -1, None, (0, 1), ()]
arrays = hnp.arrays(
  np.float32,
  st.sampled_from([(3, 5), (4, 1), (1, 7)]),
  elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def numpy_quantize(x, axes):
  """The formula, in float64."""
  x = np.asarray(x, np.float64)
  scale = np.max(np.abs(x), axis=axes, keepdims=True) / 127
  safe = np.where(scale == 0, 1, scale)
  return np.round(x / safe), scale


@pytest.mark.parametrize(("axis", "axes"), [(0, 0), (1, 1), (-1, 1), (None, (0, 1))])
def test_quantize_equals_float64_formula(axis, axes):
  x = normal(16, 9)
  q = quantize(x, axis=axis)
  values, scale = numpy_quantize(x, axes)
  np.testing.assert_allclose(q.scale, scale, rtol=1e-6)
  # A tie may fall to the other side between float32 and float64; here none does.
  np.testing.assert_array_equal(q.values, values)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(arrays, st.sampled_from(AXES))
def test_round_trip_is_within_half_a_scale_and_idempotent(x, axis):
  q = quantize(jnp.asarray(x), axis=axis)
  assert q.values.dtype == jnp.int8
  assert q.scale.dtype == jnp.float32
  assert int(jnp.max(jnp.abs(q.values.astype(jnp.int32)))) <= 127
  back = np.asarray(dequantize(q), np.float64)
  bound = np.broadcast_to(np.asarray(q.scale, np.float64) / 2 * (1 + 1e-5), x.shape)
  assert np.all(np.abs(back - x) <= bound)
  again = quantize(dequantize(q), axis=axis)
  np.testing.assert_array_equal(again.values, q.values)
  np.testing.assert_array_max_ulp(np.asarray(again.scale), np.asarray(q.scale), maxulp=2)


def test_zero_channels_come_back_as_zero():
  x = jnp.array([[0.0, 1.0], [0.0, -2.0]])
  back = dequantize(quantize(x, axis=0))
  assert back[:, 0].tolist() == [0.0, 0.0]
  assert back[1, 1] == -2.0
  assert dequantize(quantize(jnp.zeros([3, 4]), axis=None)).tolist() == np.zeros([3, 4]).tolist()


def test_nan_stays_visible_in_its_channel_only():
  x = jnp.array([[jnp.nan, 1.0], [0.5, -2.0]])
  for scale in (None, jnp.full([1, 2], 0.1)):
    back = dequantize(quantize(x, axis=0, scale=scale))
    assert np.isnan(back[:, 0]).all()
    assert np.isfinite(back[:, 1]).all()
  assert np.isnan(fake_quant(x, axis=0)[0, 0])


def test_given_scale_clips_and_is_checked():
  q = quantize(jnp.array([[1.0, -500.0], [300.0, 2.4]]), axis=0, scale=jnp.array([1.0, 2.0]))
  assert q.values.tolist() == [[1, -127], [127, 1]]
  assert q.scale.shape == (1, 2)
  with pytest.raises(ValueError, match="does not fit"):
    quantize(jnp.ones([3, 2]), axis=0, scale=jnp.ones([3, 1]))
  with pytest.raises(ValueError, match="out of range"):
    quantize(jnp.ones([3, 2]), axis=2)


def test_behaves_as_the_array_it_stands_for():
  x = normal(6, 4)
  q = quantize(x, axis=1)
  assert (q.shape, q.ndim, q.size, q.dtype, q.nbytes) == ((6, 4), 2, 24, jnp.float32, 24 + 24)
  assert is_matrix((), q)
  full = dequantize(q)
  np.testing.assert_array_equal(jnp.asarray(q), full)
  np.testing.assert_array_equal(q[jnp.array([1, 5])], full[jnp.array([1, 5])])
  np.testing.assert_array_equal(q[2:4, 1], full[2:4, 1])
  ids = jnp.array([[0, 3], [5, 5]])
  np.testing.assert_array_equal(q.take(ids), full[ids])
  np.testing.assert_array_equal(quantize(x, axis=None).take(ids)[1, 0], quantize(x, axis=None)[5])
  np.testing.assert_allclose(
    jax.jit(lambda q, y: y @ q)(q, jnp.ones([2, 6])), jnp.ones([2, 6]) @ full
  )


def test_is_a_pytree_of_values_and_scale():
  q = quantize(normal(6, 4), axis=0)
  leaves, treedef = jax.tree.flatten(q)
  assert [leaf.dtype.name for leaf in leaves] == ["int8", "float32"]
  assert isinstance(jax.tree.unflatten(treedef, leaves), QTensor)
  paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(q)]
  assert paths == [".values", ".scale"]


@pytest.mark.parametrize("axis", [0, None])
def test_stock_linen_dense_takes_it(axis):
  layer, x = nn.Dense(5), normal(2, 3, 7)
  params = layer.init(jax.random.key(0), x)["params"]
  q = quantize(params["kernel"], axis=axis)
  expected = layer.apply({"params": {**params, "kernel": dequantize(q)}}, x)
  got = jax.jit(layer.apply)({"params": {**params, "kernel": q}}, x)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_stock_linen_embed_takes_it():
  layer, ids = nn.Embed(11, 6), jnp.array([[0, 10], [3, 3]])
  table = layer.init(jax.random.key(0), ids)["params"]["embedding"]
  q = quantize(table, axis=-1)
  got = jax.jit(layer.apply)({"params": {"embedding": q}}, ids)
  np.testing.assert_array_equal(got, dequantize(q)[ids])
  attended = layer.apply({"params": {"embedding": q}}, normal(2, 6), method="attend")
  np.testing.assert_allclose(attended, normal(2, 6) @ dequantize(q).T, rtol=1e-5, atol=1e-6)


def test_factored_logits_take_it():
  table, query = normal(40, 8, seed=1), normal(3, 8, seed=2)
  exact = FactoredLogits(query, table)
  q = FactoredLogits(query, quantize(table, axis=-1))
  np.testing.assert_allclose(q.dense(), exact.dense(), atol=0.1)
  ids = jnp.array([[1, 2], [39, 0], [7, 7]])
  np.testing.assert_allclose(q.at(ids), exact.at(ids), atol=0.05)


def test_fake_quant_is_quantize_there_and_back():
  x = normal(8, 3)
  np.testing.assert_array_equal(fake_quant(x, axis=0), dequantize(quantize(x, axis=0)))
  half = fake_quant(x.astype(jnp.bfloat16), axis=0)
  assert half.dtype == jnp.bfloat16
  again = fake_quant(fake_quant(x, axis=0), axis=0)
  np.testing.assert_allclose(again, fake_quant(x, axis=0), rtol=3e-7)


def test_fake_quant_gradient_is_identity_and_zero_outside_a_fixed_range():
  x, weight = normal(8, 3), normal(8, 3, seed=3)
  free = jax.grad(lambda x: jnp.sum(weight * fake_quant(x, axis=0)))(x)
  np.testing.assert_array_equal(free, weight)
  scale = jnp.full([1, 3], 0.5 / 127)
  fixed = jax.jit(jax.grad(lambda x: jnp.sum(weight * fake_quant(x, axis=0, scale=scale))))(x)
  np.testing.assert_array_equal(fixed, jnp.where(jnp.abs(x) <= 0.5, weight, 0.0))
