"""int4, zero points and groups: formulas, bounds, products, files, stock layers."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.quant import (
  MAX_AFFINE_CONTRACTION,
  QTensor,
  dequantize,
  dot,
  dot_plan,
  fake_quant,
  quantize,
  quantize_params,
  summarize_quantized,
)
from kdjax.store import load_params, predict_bytes, save_params
from kdjax.tree import count_bytes

pytestmark = pytest.mark.usefixtures("integers_everywhere")

RNG = np.random.default_rng(0)
SETTINGS = list(itertools.product([8, 4], [None, 4, 8], [False, True]))


def normal(*shape):
  # Off centre, so that zero points matter.
  return jnp.asarray(RNG.normal(size=shape) + 0.7, jnp.float32)


def oracle(x, axis, bits, group, affine):
  """Values, scales and zeros by the formulas, in float64, group by group."""
  moved = np.moveaxis(np.float64(x), axis, -1)
  parts = moved.reshape(*moved.shape[:-1], -1, group or moved.shape[-1])
  levels = 2 ** (bits - 1) - 1
  if affine:
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    scale = (high - low) / (2**bits - 1)
    zero = -levels - 1 - np.round(low / scale)
    values = np.clip(np.round(parts / scale[..., None]) + zero[..., None], -levels - 1, levels)
  else:
    scale = np.abs(parts).max(-1) / levels
    zero = np.zeros_like(scale)
    values = np.clip(np.round(parts / scale[..., None]), -levels, levels)
  back = [np.moveaxis(a, -1, axis) for a in (values.reshape(moved.shape), scale, zero)]
  return back


@pytest.mark.parametrize(("bits", "group", "affine"), SETTINGS)
@pytest.mark.parametrize("axis", [0, 1])
def test_quantize_equals_the_formula(axis, bits, group, affine):
  x = normal(16, 24)
  q = quantize(x, axis=axis, bits=bits, group=group, affine=affine)
  values, scale, zero = oracle(x, axis, bits, group, affine)
  assert q.values.dtype == (jnp.int4 if bits == 4 else jnp.int8)
  assert q.bits == bits
  np.testing.assert_allclose(q.scale, scale, rtol=1e-6)
  if affine:
    np.testing.assert_array_equal(q.zero, zero)
  else:
    assert q.zero is None
  np.testing.assert_array_equal(np.asarray(q.values, np.int32), values)
  step = np.repeat(scale, x.shape[axis] // scale.shape[axis], axis)
  bound = step * (1 if affine else 0.5) + 1e-6
  assert np.all(np.abs(np.asarray(dequantize(q)) - np.asarray(x)) <= bound)
  again = quantize(dequantize(q), axis=axis, scale=q.scale, zero=q.zero, bits=bits, group=group)
  np.testing.assert_array_equal(np.asarray(again.values, int), np.asarray(q.values, int))


def test_zero_is_exact_and_one_sided_ranges_use_all_values():
  x = jnp.abs(normal(32, 3)).at[3, 1].set(0)
  q = quantize(x, axis=0, affine=True)
  assert dequantize(q)[3, 1] == 0
  assert q.zero.tolist() == [[-128] * 3]
  assert int(q.values.max()) == 127
  error = lambda q: float(jnp.mean((dequantize(q) - x) ** 2))  # noqa: E731
  assert error(q) < 0.5 * error(quantize(x, axis=0))


@pytest.mark.parametrize(("bits", "group", "affine"), SETTINGS)
def test_products_are_those_of_the_dequantised_weight(bits, group, affine):
  w, x = normal(16, 24), normal(3, 5, 16)
  q = quantize(w, axis=0, bits=bits, group=group, affine=affine)
  expected = jnp.einsum("abk,kn->abn", x, dequantize(q))
  found = jax.jit(dot)(x, q)
  # What is left is the rounding of the activations; with groups there is none.
  tolerance = 1e-4 if group else 0.02 * float(jnp.abs(expected).max())
  np.testing.assert_allclose(found, expected, atol=tolerance)
  table = quantize(w.T, axis=1, bits=bits, group=group, affine=affine)
  np.testing.assert_allclose(table.rdot(x), found, rtol=1e-5, atol=1e-5)
  ids = jnp.array([[0, 5], [23, 5]])
  np.testing.assert_allclose(table.take(ids), dequantize(table)[ids], rtol=1e-6)
  np.testing.assert_allclose(table[3:5, 2:], dequantize(table)[3:5, 2:], rtol=1e-6)
  grads = jax.grad(lambda x: jnp.sum(dot(x, q)))(x)
  np.testing.assert_allclose(grads[0, 0], dequantize(q).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_integer_sums_are_exact(affine):
  """With activations that are integers already, nothing is rounded."""
  x = jnp.asarray(RNG.integers(-127, 128, (4, 300)), jnp.float32).at[:, 0].set(127)
  w = normal(300, 40)
  q = quantize(w, axis=0, affine=affine)
  zero = np.zeros_like(q.scale) if q.zero is None else np.asarray(q.zero, np.float64)
  sums = np.float64(x) @ (np.float64(np.asarray(q.values)) - zero)
  np.testing.assert_allclose(dot(x, q), sums * np.float64(q.scale), rtol=1e-6)
  text = jax.jit(dot).lower(x, q).compile().as_text()
  assert "s32[" in text
  assert "s8[" in text


def test_the_largest_affine_sum_fits_int32():
  size = MAX_AFFINE_CONTRACTION
  q = QTensor(
    jnp.full([size, 1], 127, jnp.int8), jnp.ones([1, 1]), jnp.full([1, 1], -128, jnp.int8)
  )
  assert float(dot(jnp.full([2, size], 127.0), q)[0, 0]) == float(np.float32(size * 127 * 255))
  with pytest.raises(ValueError, match="overflow"):
    dot_plan((1, size + 1, 1), affine=True)
  assert dot_plan((1, size + 1, 1), backend="gpu").integer
  assert "weight only" in dot_plan((1, 64, 64), grouped=True).reason


def test_a_given_range_clips_and_stops_gradients():
  x = jnp.array([-3.0, -1.0, 0.2, 5.0, 9.0])
  options = {"scale": jnp.float32(0.5), "zero": jnp.int8(-4), "bits": 4}
  q = quantize(x, axis=0, **options)
  assert q.values.tolist() == [-8, -6, -4, 6, 7]
  assert dequantize(q).tolist() == [-2.0, -1.0, 0.0, 5.0, 5.5]
  grads = jax.grad(lambda x: fake_quant(x, axis=0, **options).sum())(x)
  assert grads.tolist() == [0, 1, 1, 1, 0]
  assert fake_quant(x, axis=0, **options).tolist() == dequantize(q).tolist()


@pytest.mark.parametrize(("bits", "group", "affine"), SETTINGS)
def test_files_hold_every_kind(bits, group, affine, tmp_path):
  w = normal(16, 25)
  dense = quantize(w, axis=0, bits=bits, group=group, affine=affine)
  sparse = quantize(jnp.where(jnp.abs(w) < 1.5, 0.0, w), axis=0, bits=bits, group=group)
  params = {"dense": {"w": dense}, "sparse": sparse}
  size = save_params(tmp_path / "w.safetensors", params)
  assert size == (tmp_path / "w.safetensors").stat().st_size == predict_bytes(params)
  loaded, _ = load_params(tmp_path / "w.safetensors")
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_int4_takes_half_the_bytes(tmp_path):
  params = {"w": normal(256, 128)}
  sizes = {bits: save_params(tmp_path / "w", quantize_params(params, bits=bits)) for bits in (8, 4)}
  assert sizes[8] - sizes[4] == pytest.approx(256 * 128 / 2, abs=64)
  q = quantize(params["w"], axis=0, bits=4)
  assert q.nbytes == 256 * 128 // 2 + 4 * 128 == count_bytes({"w": q})


def test_trees_take_bits_groups_and_zeros():
  params = {"a": {"kernel": normal(24, 6)}, "b": {"kernel": normal(9, 6), "bias": normal(6)}}
  q = quantize_params(params, bits=4, group=8, affine=True)
  assert q["a"]["kernel"].scale.shape == (3, 6)
  assert q["b"]["kernel"].scale.shape == (1, 6)
  reasons = {row.path: (row.reason, row.product) for row in summarize_quantized(q, backend="cpu")}
  assert reasons["a/kernel"][0] == "int4, 18 scales and zeros"
  assert "weight only" in reasons["a/kernel"][1]
  assert reasons["b/kernel"][1] == "integer; not measured on cpu"
  # Twice, for some of each.
  only_b = lambda path, leaf: path[0] == "b" and leaf.ndim == 2  # noqa: E731
  mixed = quantize_params(quantize_params(params, select=only_b), bits=4)
  assert [mixed[name]["kernel"].bits for name in "ab"] == [4, 8]


def test_stock_layers_take_all_of_them():
  module, x = nn.Dense(6), normal(3, 24)
  params = module.init(jax.random.key(0), x)
  for bits, group, affine in SETTINGS:
    q = quantize_params(params, bits=bits, group=group, affine=affine)
    expected = x @ dequantize(q["params"]["kernel"])
    np.testing.assert_allclose(module.apply(q, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("options", "match"),
  [
    ({"bits": 3}, "bits must be 4 or 8"),
    ({"group": 5}, "group=5 must divide"),
    ({"group": 4, "axis": (0, 1)}, "one axis"),
    ({"affine": True, "scale": jnp.ones([1, 24])}, "by its `zero`"),
    ({"scale": jnp.ones([4, 24])}, "does not fit"),
  ],
)
def test_what_does_not_go_together_is_said(options, match):
  with pytest.raises(ValueError, match=match):
    quantize(normal(16, 24), **{"axis": 0} | options)


def test_nan_is_seen_in_its_group_alone():
  x = normal(8, 2).at[1, 0].set(jnp.nan)
  for options in ({}, {"affine": True}, {"scale": jnp.ones([2, 2])}):
    q = quantize(x, axis=0, group=4, **options)
    hidden = np.isnan(np.asarray(dequantize(q)))
    assert hidden[:4, 0].all()
    assert hidden.sum() == 4
