"""Masks that are held, that move, that gradients pass through; criteria of gradients in `prune`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.prune import (
  apply_masks,
  find_masks,
  fisher,
  hold,
  magnitude,
  make_masks,
  measure_sparsity,
  movement,
  one_shot,
  prune,
  regrow,
  saliency,
  straight_through_masks,
)

KEY = jax.random.key(0)


def make_params():
  return {
    "kernel": jax.random.normal(KEY, [8, 12]),
    "bias": jnp.ones([12]),
  }


def noise(step):
  keys = jax.random.split(jax.random.fold_in(KEY, step))
  return {"kernel": jax.random.normal(keys[0], [8, 12]), "bias": jax.random.normal(keys[1], [12])}


def run(tx, steps, params=None):
  """Params and masks before and after every step."""
  params = make_params() if params is None else params
  state = tx.init(params)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, grad=grads)
    return optax.apply_updates(params, updates), state

  seen = [(params, find_masks(state))]
  for i in range(steps):
    params, state = step(params, state, noise(i))
    seen.append((params, find_masks(state)))
  return jax.tree.map(np.asarray, seen)


@pytest.mark.parametrize("by_gradient", [True, False])
def test_the_smallest_go_and_as_many_come(by_gradient):
  tx = optax.chain(
    optax.adam(0.1), regrow(0.5, every=3, end=9, key=KEY, fraction=0.4, by_gradient=by_gradient)
  )
  seen = run(tx, 14)
  assert all(mask["bias"].all() for _, mask in seen)
  changes = []
  for i, ((params, mask), (new_params, new_mask)) in enumerate(itertools.pairwise(seen)):
    old, new = mask["kernel"], new_mask["kernel"]
    assert new.sum() == 48
    assert np.all(new_params["kernel"][~new] == 0)
    if np.array_equal(old, new):
      continue
    changes.append(i)
    count = round(0.2 * (1 + np.cos(np.pi * i / 9)) * 48)
    size, grads = np.abs(params["kernel"]), np.abs(np.asarray(noise(i)["kernel"]))
    order = np.argsort(np.where(old, size, np.inf), axis=None)[:count]
    kept = old.copy()
    kept.ravel()[order] = False
    assert np.all(new[kept])
    grown = new & ~kept
    assert grown.sum() == count
    if by_gradient:
      assert grads[grown].min() >= grads[~new].max()
    # What starts anew starts from 0.
    assert np.all(new_params["kernel"][new & ~old] == 0)
  assert changes == [3, 6]


def test_the_reference_formula_of_what_changes():
  """At step 0 nothing has been learned yet: the masks of the start stay."""
  seen = run(optax.chain(optax.sgd(0.1), regrow(0.9, every=1, end=4, key=KEY)), 5)
  changed = [not np.array_equal(a["kernel"], b["kernel"]) for (_, a), (_, b) in
             itertools.pairwise(seen)]  # fmt: skip
  assert changed[0] is False
  assert changed[1] is True
  assert changed[4] is False


def test_held_masks_make_a_lottery_ticket():
  early = make_params()
  trained, _ = run(optax.chain(optax.sgd(0.1), prune(one_shot(0.0))), 4)[-1]
  masks = make_masks(magnitude(trained), sparsity=0.75)
  tx = optax.chain(optax.adam(0.1), hold(masks))
  seen = run(tx, 5, apply_masks(early, masks))
  for params, kept in seen:
    np.testing.assert_array_equal(kept["kernel"], masks["kernel"])
    assert np.all(params["kernel"][~kept["kernel"]] == 0)
  assert np.all(seen[-1][0]["kernel"][np.asarray(masks["kernel"])] != 0)


@pytest.mark.parametrize(("criterion", "decay"), [(movement, 1.0), (saliency, 0.5), (fisher, 0.9)])
def test_criteria_of_gradients_are_summed(criterion, decay):
  tx = optax.chain(
    optax.adam(0.1), prune(one_shot(0.5, step=4), gradient_criterion=criterion, decay=decay)
  )
  seen = run(tx, 6)
  sums = np.zeros([8, 12])
  for i, (params, _) in enumerate(seen[:5]):
    sums = decay * sums + np.asarray(criterion(params, noise(i))["kernel"])
  expected = sums > np.sort(sums, axis=None)[47]
  np.testing.assert_array_equal(seen[5][1]["kernel"], expected)
  assert np.all(seen[6][0]["kernel"][~expected] == 0)
  assert measure_sparsity(seen[4][1]) == 0


def test_what_is_missing_is_said():
  params, grads = make_params(), noise(0)
  tx = prune(one_shot(0.5), gradient_criterion=movement)
  with pytest.raises(ValueError, match="grad=grads"):
    tx.update(grads, tx.init(params), params)
  tx = regrow(0.5, every=1, end=2, key=KEY)
  with pytest.raises(ValueError, match="grad=grads"):
    tx.update(grads, tx.init(params), params)
  with pytest.raises(ValueError, match="hold needs params"):
    hold(params).update(grads, hold(params).init(params))
  for bad in ({"sparsity": 1.0}, {"every": 0}, {"end": 0}, {"fraction": 2.0}):
    with pytest.raises(ValueError, match="need"):
      regrow(**{"sparsity": 0.5, "every": 1, "end": 2, "key": KEY} | bad)
  with pytest.raises(ValueError, match="decay"):
    prune(one_shot(0.5), decay=0.0)


def test_gradients_pass_masks_straight():
  params = make_params()
  masks_of = lambda params: make_masks(magnitude(params), sparsity=0.5)  # noqa: E731

  def loss(params, masks):
    return jnp.sum(straight_through_masks(params, masks)["kernel"] * noise(0)["kernel"])

  masks = masks_of(params)
  expected = jnp.sum(apply_masks(params, masks)["kernel"] * noise(0)["kernel"])
  for given in (masks, masks_of):
    value, grads = jax.jit(jax.value_and_grad(lambda p, given=given: loss(p, given)))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grads["kernel"], noise(0)["kernel"], rtol=1e-6)
    assert not grads["bias"].any()


def test_a_criterion_makes_the_first_masks():
  params = {"kernel": jnp.arange(1.0, 17.0).reshape(4, 4)}
  tx = regrow(0.5, every=2, end=8, key=jax.random.key(0), criterion=magnitude)
  (mask,) = jax.tree.leaves(find_masks(tx.init(params)))
  assert mask.tolist() == (params["kernel"] > 8).tolist()
