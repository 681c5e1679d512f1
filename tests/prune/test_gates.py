"""Gates on units: their probabilities, what they cost, a budget that is reached, exact removal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.prune import (
  apply_gates,
  apply_masks,
  axis_scores,
  choose,
  expected_parameters,
  find_axes,
  group_lasso,
  init_gates,
  kept_units,
  magnitude,
  mask_axes,
  multiplier,
  open_probabilities,
  resize,
  sample_gates,
  take_axes,
  toward_budget,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def network(params, x):
  hidden = jax.nn.relu(x @ params["up"] + params["bias"][None])
  return jax.nn.relu(hidden @ params["middle"]) @ params["down"]


def make_params(first=10, second=8):
  shapes = {"up": (4, first), "bias": (first,), "middle": (first, second), "down": (second, 3)}
  return {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


X = jnp.asarray(RNG.normal(size=(64, 4)), jnp.float32)


def test_gates_open_as_often_as_they_say():
  gates = {"u": jnp.linspace(-3, 3, 7)}
  draws = jax.vmap(lambda key: sample_gates(gates, key=key)["u"])(jax.random.split(KEY, 20000))
  np.testing.assert_allclose(
    (draws > 0).mean(0), open_probabilities(gates)["u"], atol=4 * 0.5 / np.sqrt(20000)
  )
  assert draws.min() == 0
  assert draws.max() == 1
  served = sample_gates(gates)["u"]
  assert served[0] == 0
  assert served[-1] == 1
  assert np.all(np.diff(served) >= 0)


def test_expected_parameters_are_the_mean_count():
  params = make_params()
  axes = find_axes(network, params, X)
  gates = init_gates(params, axes)
  gates = {name: jnp.asarray(RNG.normal(size=v.shape), jnp.float32) for name, v in gates.items()}

  def count(key):
    opened = {name: z > 0 for name, z in sample_gates(gates, key=key).items()}
    masks = apply_gates(jax.tree.map(jnp.ones_like, params), axes, opened)
    return sum(jnp.sum(m) for m in jax.tree.leaves(masks))

  counts = jax.vmap(count)(jax.random.split(KEY, 4000))
  error = np.std(counts) / np.sqrt(4000)
  assert abs(float(expected_parameters(params, axes, gates)) - counts.mean()) < 4 * error
  # Multiply-accumulates a row: kernels once, biases never.
  weigh = {name: float(name != "bias") for name in params}
  less = expected_parameters(params, axes, gates, weigh=weigh)
  (name,) = [name for name in gates if name.startswith("up")]
  bias = float(open_probabilities(gates)[name].sum())
  np.testing.assert_allclose(expected_parameters(params, axes, gates) - less, bias, rtol=1e-4)


def test_units_that_are_shut_leave_the_arrays():
  params = make_params()
  axes = find_axes(network, params, X)
  gates = {name: jnp.linspace(-4, 3, len(v)) for name, v in init_gates(params, axes).items()}
  folded = apply_gates(params, axes, sample_gates(gates))
  keep = kept_units(gates)
  small = take_axes(folded, axes, keep)
  assert all(0 < len(units) < len(gates[name]) for name, units in keep.items())
  found = resize(network, params, keep)(small, X)
  np.testing.assert_allclose(found, network(folded, X), rtol=1e-4, atol=1e-5)
  shut = kept_units({"u": jnp.array([-9.0, -8.0])})
  assert shut["u"].tolist() == [1]


@pytest.mark.parametrize("share", [0.6, 0.3])
def test_a_budget_is_reached(share):
  """A network larger than its task: gates close until it is as small as asked, and still serves."""
  truth = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
  params = jax.tree.map(lambda p: 0.4 * p, make_params(24, 16))
  axes = find_axes(network, params, X)
  gates = init_gates(params, axes)
  budget = share * sum(p.size for p in params.values())
  tx = optax.multi_transform(
    {"params": optax.adam(1e-2), "gates": optax.adam(2e-2)}, ("params", "gates")
  )

  @jax.jit
  def step(carry, key):
    trained, state, weight = carry
    x = jax.random.normal(key, (256, 4))

    def loss_fn(trained):
      params, gates = trained
      opened = apply_gates(params, axes, sample_gates(gates, key=key))
      cost = expected_parameters(params, axes, gates)
      loss = jnp.mean((network(opened, x) - jnp.tanh(x @ truth)) ** 2)
      return loss + weight.weight * cost / budget, cost

    (_, cost), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    updates, state = tx.update(grads, state, trained)
    trained = optax.apply_updates(trained, updates)
    return (trained, state, toward_budget(weight, cost, budget)), cost

  start = (params, gates), tx.init((params, gates)), multiplier(1e-3)
  ((params, gates), _, _), costs = jax.lax.scan(step, start, jax.random.split(KEY, 2000))
  assert float(costs[0]) > 1.3 * budget
  assert 0.7 * budget < float(costs[-1]) < 1.05 * budget
  small = take_axes(apply_gates(params, axes, sample_gates(gates)), axes, kept_units(gates))
  assert 0.6 * budget < sum(p.size for p in small.values()) < 1.1 * budget
  served = resize(network, params, kept_units(gates))(small, X)
  wanted = jnp.tanh(X @ truth)
  assert float(jnp.mean((served - wanted) ** 2)) < 0.05 * float(jnp.var(wanted))


def test_group_lasso_is_its_formula_and_silent_at_zero():
  params = make_params()
  axes = find_axes(network, params, X)
  scores = axis_scores(params, axes, magnitude(params))
  keep = choose(scores, dict.fromkeys(scores, 5))
  params = apply_masks(params, mask_axes(params, axes, keep))
  up, bias, middle, down = (np.float64(params[k]) for k in ("up", "bias", "middle", "down"))
  first = np.sqrt((up**2).sum(0) + bias**2 + (middle**2).sum(1))
  second = np.sqrt((middle**2).sum(0) + (down**2).sum(1))
  expected = np.sqrt(4 + 1 + 8) * first.sum() + np.sqrt(10 + 3) * second.sum()
  np.testing.assert_allclose(group_lasso(params, axes), expected, rtol=1e-5)
  grads = jax.grad(group_lasso)(params, axes)
  assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))
  gone = np.flatnonzero(first == 0)
  assert len(gone) == 5
  assert not np.asarray(grads["up"])[:, gone].any()


def test_the_controller_moves_against_the_excess():
  start = multiplier(0.5)
  assert toward_budget(start, 3.0, 2.0).weight > 0.5 > toward_budget(start, 1.0, 2.0).weight
  np.testing.assert_allclose(toward_budget(start, 2.0, 2.0).weight, 0.5, rtol=1e-6)
  with pytest.raises(ValueError, match="positive"):
    multiplier(0.0)
  with pytest.raises(ValueError, match="open_at"):
    init_gates({}, {}, open_at=1.0)
