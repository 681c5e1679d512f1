"""Training through integers: the forward pass is the served one, gradients are straight-through."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import layers, prune, quant
from kdjax.types import FactoredLogits

pytestmark = pytest.mark.usefixtures("integers_everywhere")


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rounded_rows(x):
  return quant.fake_quant(x, axis=-1)


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"bits": 4}, {"bits": 4, "group": 8}])
def test_forward_is_what_is_served_and_the_gradient_that_of_rounded_floats(options):
  x, w, g = normal(8, 32), normal(32, 12, seed=1), normal(8, 12, seed=2)

  def trained(x, w):
    return quant.dot(x, quant.straight_through(w, axis=0, **options))

  served = quant.dot(x, quant.quantize(w, axis=0, **options))
  np.testing.assert_array_equal(trained(x, w), served)

  def simulated(x, w):
    seen = x if "group" in options else rounded_rows(x)  # Groups multiply in floats.
    return jnp.matmul(seen, quant.fake_quant(w, axis=0, **options), precision="highest")

  np.testing.assert_allclose(trained(x, w), simulated(x, w), rtol=1e-4, atol=1e-5)
  got = jax.jit(jax.grad(lambda x, w: jnp.sum(g * trained(x, w)), (0, 1)))(x, w)
  expected = jax.grad(lambda x, w: jnp.sum(g * simulated(x, w)), (0, 1))(x, w)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_learned_scales_have_the_gradient_of_the_paper():
  w, scale, g = normal(50, 3), jnp.full([1, 3], 0.01), normal(50, 3, seed=1)

  def loss(w, scale):
    q = quant.straight_through(w, axis=0, scale=scale)
    return jnp.sum(g * quant.dequantize(q))

  dw, dscale = jax.grad(loss, (0, 1))(w, scale)
  ratio = np.asarray(w, np.float64) / 0.01
  inside = np.abs(ratio) <= 127
  assert 0 < inside.sum() < inside.size
  np.testing.assert_allclose(dw, np.where(inside, g, 0), rtol=1e-6)
  step = np.where(inside, np.round(ratio) - ratio, 127 * np.sign(ratio))
  expected = (g * step).sum(0, keepdims=True) / np.sqrt(50 * 127)
  np.testing.assert_allclose(dscale, expected, rtol=1e-3)
  q = quant.straight_through(w, axis=0, scale=scale)
  np.testing.assert_array_equal(q.values, quant.quantize(w, axis=0, scale=scale).values)


def test_a_learned_scale_finds_the_range():
  # Gaussian weights and 4 bits: the best range is narrower than the largest entry.
  w = normal(4096)
  scale = jnp.max(jnp.abs(w)) / 7
  error = lambda s: jnp.mean(  # noqa: E731
    (quant.dequantize(quant.straight_through(w, axis=0, scale=s, bits=4)) - w) ** 2
  )
  first = error(scale)
  step = jax.jit(lambda s: s - 5.0 * jax.grad(error)(s))
  for _ in range(200):
    scale = step(scale)
  best = min(float(error(jnp.float32(s))) for s in np.linspace(0.1, 0.6, 200))
  assert best <= error(scale) < 1.02 * best < first


def test_static_input_scales_clip_and_learn():
  x, w, g = normal(6, 32), quant.quantize(normal(32, 5, seed=1), axis=0), normal(6, 5, seed=2)
  fixed = jnp.float32(0.01)

  def loss(x, s):
    return jnp.sum(g * quant.dot(x, w.replace(input_scale=s)))

  dx, ds = jax.jit(jax.grad(loss, (0, 1)))(x, fixed)
  weights, ratio = np.asarray(quant.dequantize(w), np.float64), np.asarray(x, np.float64) / 0.01
  inside = np.abs(ratio) <= 127
  assert 0 < inside.sum() < inside.size
  ahead = g @ weights.T
  np.testing.assert_allclose(dx, np.where(inside, ahead, 0), rtol=1e-4, atol=1e-5)
  step = np.where(inside, np.round(ratio) - ratio, 127 * np.sign(ratio))
  np.testing.assert_allclose(ds, (ahead * step).sum(), rtol=1e-3)
  seen = np.clip(np.round(ratio), -127, 127) * 0.01
  np.testing.assert_allclose(
    quant.dot(x, w.replace(input_scale=fixed)), seen @ weights, rtol=1e-4, atol=1e-4
  )


def test_a_nan_stays_visible_with_a_static_scale():
  x = normal(4, 64).at[1, 3].set(jnp.nan)
  w = quant.quantize(normal(64, 8), axis=0).replace(input_scale=jnp.float32(0.05))
  y = quant.dot(x, w)
  assert np.isnan(y[1]).all()
  assert np.isfinite(y[jnp.array([0, 2, 3])]).all()


def test_whole_trees_and_tables():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, ids):
      embed = layers.Embed(9, 16)
      x = nn.relu(layers.Dense(16)(embed(ids)))
      return FactoredLogits(x, embed.table())

  net, ids = Net(), jnp.array([[0, 3, 8], [2, -1, 4]])
  params = net.init(jax.random.key(0), ids)
  trained = net.apply(quant.straight_through_params(params), ids)
  served = net.apply(quant.quantize_params(params), ids)
  np.testing.assert_array_equal(trained.dense(), served.dense())
  np.testing.assert_allclose(quant.as_served(trained).dense(), served.dense(), rtol=1e-5, atol=1e-7)

  def loss(params):
    logits = net.apply(quant.straight_through_params(params), ids)
    return jnp.sum(quant.as_served(logits).dense() ** 2)

  grads = jax.jit(jax.grad(loss))(params)["params"]
  used = np.abs(grads["Embed_0"]["embedding"]).sum(1) > 0
  assert used.all()  # Looked up or contracted: every row learns.
  assert np.abs(grads["Dense_0"]["kernel"]).sum() > 0


def test_scales_train_beside_the_params():
  params = {"kernel": normal(16, 4), "bias": jnp.zeros(4)}
  scales = quant.first_scales(params, bits=4)
  assert scales["bias"] is None
  x, y = normal(64, 16, seed=1), normal(64, 4, seed=2)

  def loss(trained):
    q = quant.straight_through_params(*trained, bits=4)
    return jnp.mean((quant.dot(x, q["kernel"]) + q["bias"][None] - y) ** 2)

  tx = optax.adam(1e-2)
  trained = (params, scales)
  state = tx.init(trained)
  first = loss(trained)

  @jax.jit
  def step(trained, state):
    updates, state = tx.update(jax.grad(loss)(trained), state)
    return optax.apply_updates(trained, updates), state

  for _ in range(100):
    trained, state = step(trained, state)
  assert loss(trained) < 0.8 * first
  assert np.all(trained[1]["kernel"] != scales["kernel"])
  with pytest.raises(ValueError, match="leave out group and affine"):
    quant.straight_through_params(*trained, group=4)


def test_one_chain_prunes_and_trains_integers():
  params = {"kernel": normal(16, 8)}
  x, y = normal(64, 16, seed=1), normal(64, 8, seed=2)
  tx = optax.chain(optax.sgd(1e-2), prune.prune(prune.one_shot(0.5)))

  def loss(params):
    return jnp.mean((quant.dot(x, quant.straight_through_params(params)["kernel"]) - y) ** 2)

  state, first = tx.init(params), loss(params)
  for _ in range(5):
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  assert int(jnp.sum(params["kernel"] == 0)) == 64
  assert jnp.sum(quant.quantize_params(params)["kernel"].values == 0) >= 64
  assert loss(params) != first


def test_forward_costs_one_product():
  x, w = normal(16, 64), normal(64, 32, seed=1)
  compiled = jax.jit(lambda x, w: quant.dot(x, quant.straight_through(w, axis=0)))
  text = compiled.lower(x, w).compile().as_text()
  assert text.count(" dot(") == 1, text


def test_queries_of_grouped_tables_stay_as_they_are():
  table = quant.quantize(normal(12, 16), axis=-1, group=8)
  logits = FactoredLogits(normal(5, 16, seed=1), table)
  served = quant.as_served(logits)
  np.testing.assert_array_equal(served.query, logits.query)
  np.testing.assert_allclose(served.dense(), logits.dense(), rtol=1e-5, atol=1e-6)
