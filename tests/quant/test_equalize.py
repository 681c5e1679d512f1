"""SmoothQuant, AWQ and static scales: the formulas, exactness without rounding, less error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import quant, store
from kdjax.traced import observe_inputs

pytestmark = pytest.mark.usefixtures("integers_everywhere")


def columns(rows):
  return quant.absmax(rows, axis=0)


def make(seed=0, outliers=(3, 17)):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(256, 32)).astype(np.float32)
  x[:, list(outliers)] *= 60
  params = {"up": jnp.asarray(rng.normal(size=(32, 24)), jnp.float32), "bias": jnp.zeros(24)}
  return lambda p, x: quant.dot(x, p["up"]) + p["bias"][None], params, jnp.asarray(x)


def error(apply_fn, params, rounded, x):
  return float(jnp.mean((apply_fn(rounded, x) - apply_fn(params, x)) ** 2))


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_smooth_quant_equals_its_formula(strength):
  apply_fn, params, x = make()
  seen = observe_inputs(apply_fn, params, x, statistic=columns)
  q = quant.smooth_quant(params, seen, strength=strength)["up"]
  w = np.asarray(params["up"], np.float64)
  factor = np.abs(x).max(0) ** strength / np.abs(w).max(1) ** (1 - strength)
  np.testing.assert_allclose(q.input_factor[:, 0], 1 / factor, rtol=1e-5)
  scaled = w * factor[:, None]
  values = np.round(scaled / (np.abs(scaled).max(0) / 127))
  assert np.mean(np.asarray(q.values) == values) > 0.999  # But for ties of float32.
  assert np.max(np.abs(np.asarray(q.values) - values)) <= 1


def test_smooth_quant_takes_outliers_of_activations():
  apply_fn, params, x = make()
  seen = observe_inputs(apply_fn, params, x, statistic=columns)
  smooth = error(apply_fn, params, quant.smooth_quant(params, seen), x)
  plain = error(apply_fn, params, quant.quantize_params(params), x)
  assert smooth < 0.2 * plain


def test_smooth_quant_checks_what_it_is_given():
  apply_fn, params, x = make()
  with pytest.raises(ValueError, match=r"\[0, 1\]"):
    quant.smooth_quant(params, params, strength=2.0)
  with pytest.raises(ValueError, match="absmax"):
    quant.smooth_quant(params, observe_inputs(apply_fn, params, x))
  seen = observe_inputs(apply_fn, params, x.at[:, 5].set(0), statistic=columns)
  q = quant.smooth_quant(params, seen)["up"]
  assert q.input_factor[5, 0] == 1  # An input that never speaks.


@pytest.mark.parametrize("options", [{}, {"group": 8}, {"group": 8, "affine": True}, {"bits": 8}])
def test_awq_is_the_best_of_its_grid(options):
  apply_fn, params, x = make(outliers=(3, 9, 17))
  seen = observe_inputs(apply_fn, params, x)
  q = quant.awq(params, seen, **options)["up"]
  rms = np.sqrt(np.mean(np.asarray(x, np.float64) ** 2, axis=0))
  settings = {"bits": 4} | options

  def error_of(weights):
    return float(np.sum((np.asarray(x) @ (np.asarray(weights) - np.asarray(params["up"]))) ** 2))

  errors = []
  for strength in np.arange(20) / 20:
    factor = rms**strength
    factor = jnp.asarray(factor / np.sqrt(factor.max() * factor.min()), jnp.float32)[:, None]
    tried = quant.dequantize(quant.quantize(params["up"] * factor, axis=0, **settings)) / factor
    errors.append(error_of(tried))
  np.testing.assert_allclose(error_of(quant.dequantize(q)), min(errors), rtol=1e-3)
  assert min(errors) < 0.5 * errors[0]


def test_awq_of_even_inputs_is_rounding_to_nearest_or_better():
  apply_fn, params, x = make(outliers=())
  q = quant.awq(params, observe_inputs(apply_fn, params, x), steps=1)["up"]
  np.testing.assert_allclose(q.input_factor, 1.0, rtol=1e-6)
  with pytest.raises(ValueError, match="steps"):
    quant.awq(params, params, steps=0)


def test_factors_count_in_every_way_to_read_a_weight(tmp_path):
  apply_fn, params, x = make()
  seen = observe_inputs(apply_fn, params, x, statistic=columns)
  q = quant.smooth_quant(params, seen)["up"]
  full = np.asarray(q.values, np.float32) * np.asarray(q.scale) * np.asarray(q.input_factor)
  np.testing.assert_allclose(quant.dequantize(q), full, rtol=1e-6)
  np.testing.assert_allclose(jnp.asarray(q), full, rtol=1e-6)
  np.testing.assert_allclose(q[2:5, 1], full[2:5, 1], rtol=1e-6)
  np.testing.assert_allclose(q.take(jnp.array([7, 1])), full[[7, 1]], rtol=1e-6)
  table = quant.QTensor(q.values.T, q.scale.T, input_factor=q.input_factor.T)
  np.testing.assert_allclose(table.rdot(x), quant.dot(x, q), rtol=1e-6)
  np.testing.assert_allclose(table.take(jnp.array([7, 1])), full.T[[7, 1]], rtol=1e-6)
  assert q.nbytes == 32 * 24 + 24 * 4 + 32 * 4
  with pytest.raises(ValueError, match="input_factor"):
    quant.dot(x, q.replace(input_factor=jnp.ones([5, 1])))
  fixed = q.replace(input_scale=jnp.float32(0.5))
  store.save_params(tmp_path / "m.safetensors", {"up": fixed})
  again = store.load_params(tmp_path / "m.safetensors")[0]["up"]
  jax.tree.map(np.testing.assert_array_equal, again, fixed)
  assert again.zero is None
  shadowed = {"up": quant.straight_through(params["up"], axis=0)}
  with pytest.raises(ValueError, match="made for training"):
    store.save_params(tmp_path / "m.safetensors", shadowed)


def test_gradients_reach_the_factors():
  apply_fn, params, x = make(outliers=())
  seen = observe_inputs(apply_fn, params, x, statistic=columns)
  q = quant.smooth_quant(params, seen)["up"]
  grad = jax.grad(lambda r: jnp.sum(quant.dot(x, q.replace(input_factor=r))))(q.input_factor)
  bare = quant.dequantize(q.replace(input_factor=None))
  expected = np.einsum("nk,km->k", x, bare)[:, None]
  np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=2e-2)


def test_static_scales_hold_for_what_was_observed():
  apply_fn, params, x = make(outliers=())
  int8 = quant.quantize_params(params)
  seen = observe_inputs(apply_fn, params, x, statistic=columns)
  fixed = quant.with_input_scales(int8, seen)
  np.testing.assert_allclose(fixed["up"].input_scale, jnp.max(jnp.abs(x)) / 127, rtol=1e-6)
  assert error(apply_fn, params, fixed, x) < 2 * error(apply_fn, params, int8, x)
  bins = observe_inputs(apply_fn, params, x, statistic=quant.histogram)
  mse = quant.with_input_scales(int8, bins, scale_fn=quant.mse_scale)["up"].input_scale
  np.testing.assert_allclose(mse, quant.mse_scale(bins["up"].value))
  smooth = quant.smooth_quant(params, seen)
  largest = jnp.max(jnp.abs(x) * smooth["up"].input_factor.T)
  both = quant.with_input_scales(smooth, seen)["up"]
  np.testing.assert_allclose(both.input_scale, largest / 127, rtol=1e-6)
  with pytest.raises(ValueError, match="up: a weight with input_factor"):
    quant.with_input_scales(smooth, bins)
