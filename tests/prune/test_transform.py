"""`prune` in an optax chain: exact zeros, exact counts, jit, scan, donation, sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.prune.criteria import random
from kdjax.prune.distributions import global_sparsity
from kdjax.prune.masks import measure_sparsity
from kdjax.prune.patterns import n_m
from kdjax.prune.schedules import cubic, one_shot
from kdjax.prune.transform import find_masks, prune


def make_params():
  a, b, c = jax.random.split(jax.random.key(0), 3)
  return {
    "first": {"kernel": jax.random.normal(a, [8, 12]), "bias": jnp.ones([12])},
    "second": {"kernel": jax.random.normal(b, [12, 4]), "bias": jax.random.normal(c, [4])},
  }


def gradients(params, step):
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), len(leaves))
  grads = [jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(treedef, grads)


def step_with(tx):
  def step(params, state, i):
    updates, state = tx.update(gradients(params, i), state, params)
    return optax.apply_updates(params, updates), state

  return step


SETTINGS = [
  {},
  {"distribution": global_sparsity},
  {"pattern": n_m(2, 4)},
  {"criterion": functools.partial(random, key=jax.random.key(5))},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_masked_weights_are_exactly_zero_after_every_step(options):
  final = 0.5 if "pattern" in options else 0.8
  tx = optax.chain(optax.adam(1e-1), prune(cubic(final, start=2, end=9, every=3), **options))
  params, step = make_params(), jax.jit(step_with(tx))
  state, removed = tx.init(params), jax.tree.map(lambda w: np.zeros(w.shape, bool), params)
  assert measure_sparsity(find_masks(state)) == 0.0
  for i in range(13):
    params, state = step(params, state, i)
    masks = find_masks(state)
    jax.tree.map(lambda w, m: np.testing.assert_array_equal(w[~np.asarray(m)], 0), params, masks)
    now = jax.tree.map(lambda m: ~np.asarray(m), masks)
    assert jax.tree.all(jax.tree.map(lambda old, new: bool(np.all(new >= old)), removed, now))
    removed = now
    assert bool(masks["first"]["bias"].all())
  sizes = (96, 48)
  counts = [int(removed[name]["kernel"].sum()) for name in ("first", "second")]
  if "distribution" in options:
    assert sum(counts) == round(final * sum(sizes))
  else:
    assert counts == [round(final * size) for size in sizes]
  zeros = sum(int(jnp.sum(params[name]["kernel"] == 0)) for name in params)
  assert zeros == sum(counts), "weights that stay went on training"


def test_no_masks_are_made_between_updates():
  calls = []

  def watched(params):
    jax.debug.callback(lambda: calls.append(1))
    return jax.tree.map(jnp.abs, params)

  tx = prune(cubic(0.5, start=1, end=7, every=3), criterion=watched)
  params, step = make_params(), jax.jit(step_with(tx))
  state = tx.init(params)
  for i in range(12):
    params, state = step(params, state, i)
  jax.effects_barrier()
  assert len(calls) == 3  # Steps 1, 4 and 7.


def test_scan_and_donation_equal_single_steps():
  tx = optax.chain(optax.sgd(0.05), prune(cubic(0.75, start=1, end=6, every=2)))
  step = step_with(tx)
  params = make_params()
  state = tx.init(params)
  single = (params, state)
  jitted = jax.jit(step)
  for i in range(8):
    single = jitted(*single, i)
  scanned, _ = jax.lax.scan(
    lambda carry, i: (step(*carry, i), None), (make_params(), tx.init(params)), jnp.arange(8)
  )
  donated = (make_params(), tx.init(params))
  donating = jax.jit(step, donate_argnums=(0, 1))
  for i in range(8):
    donated = donating(*donated, i)
  for other in (scanned, donated):
    np.testing.assert_array_equal(
      find_masks(other[1])["first"]["kernel"], find_masks(single[1])["first"]["kernel"]
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other[0], single[0]
    )


def test_sharded_equals_one_device():
  tx = optax.chain(optax.adam(0.05), prune(one_shot(0.6, step=1)))
  step = jax.jit(step_with(tx))
  params = make_params()
  mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.tree.map(
    lambda w: jax.device_put(w, jax.NamedSharding(mesh, jax.P("model"))), params
  )
  outcomes = []
  for start in (params, spread):
    carry = (start, tx.init(start))
    for i in range(3):
      carry = step(*carry, i)
    outcomes.append(carry)
  (one, _), (many, state) = outcomes
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
  assert not find_masks(state)["first"]["kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_zeros_are_exact(dtype):
  params = jax.tree.map(lambda w: w.astype(dtype), make_params())
  tx = optax.chain(optax.sgd(0.3), prune(one_shot(0.5)))
  new, state = jax.jit(step_with(tx))(params, tx.init(params), 0)
  assert new["first"]["kernel"].dtype == dtype
  np.testing.assert_array_equal(new["first"]["kernel"][~find_masks(state)["first"]["kernel"]], 0)


def test_misuse_is_named():
  tx = prune(one_shot(0.5))
  params = make_params()
  with pytest.raises(ValueError, match="needs params"):
    tx.update(params, tx.init(params))
  with pytest.raises(ValueError, match="found 0"):
    find_masks(optax.adam(1.0).init(params))
