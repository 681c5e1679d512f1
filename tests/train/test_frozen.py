"""Frozen leaves: unchanged, without moments, without a gradient's work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import prune
from kdjax.train import freeze

PARAMS = {
  "table": jax.random.normal(jax.random.key(0), (5, 4)),
  "out": {"kernel": jax.random.normal(jax.random.key(1), (4, 6)), "bias": jnp.ones([6])},
}


def of_table(path, leaf):
  return path[0] == "table"


def steps(tx, count=5):
  @jax.jit
  def step(params, state):
    loss = lambda p: jnp.sum(jnp.sin(p["table"] @ p["out"]["kernel"] + p["out"]["bias"][None]))  # noqa: E731
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(count):
    params, state = step(params, state)
  return params, state


def test_the_rest_trains_as_if_it_were_alone():
  tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, weight_decay=0.1))
  params, state = steps(freeze(tx, of_table))
  np.testing.assert_array_equal(params["table"], PARAMS["table"])

  def loss(rest):
    return jnp.sum(jnp.sin(PARAMS["table"] @ rest["kernel"] + rest["bias"][None]))

  rest, own = PARAMS["out"], tx.init(PARAMS["out"])
  for _ in range(5):
    updates, own = tx.update(jax.grad(loss)(rest), own, rest)
    rest = optax.apply_updates(rest, updates)
  for name, value in rest.items():
    np.testing.assert_allclose(params["out"][name], value, atol=1e-5)
  # Two moments of the leaves that train, and counts.
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1)
  assert sizes == [6, 6, 24, 24]


def test_masks_and_frozen_leaves_get_along():
  tx = freeze(optax.chain(optax.adam(0.1), prune.prune(prune.one_shot(0.5))), of_table)
  params, _ = steps(tx)
  np.testing.assert_array_equal(params["table"], PARAMS["table"])
  assert int((params["out"]["kernel"] == 0).sum()) == 12


def test_what_is_frozen_costs_no_gradient():
  """The compiled step has one matrix product less: that of the table's gradient."""

  def products(select):
    tx = freeze(optax.sgd(0.1), select)

    def step(params):
      loss = lambda p: jnp.sum(jnp.sin(p["table"] @ p["out"]["kernel"]))  # noqa: E731
      return tx.update(jax.grad(loss)(params), tx.init(params), params)[0]

    return jax.jit(step).lower(PARAMS).compile().as_text().count(" dot(")

  assert products(of_table) == products(lambda path, leaf: False) - 1
