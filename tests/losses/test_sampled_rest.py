"""The student's mass beyond a teacher's best, estimated from shared negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import Negatives
from kdjax.types import FactoredLogits

ITEMS, TOKENS, K = 40, 6, 5
LOSSES = (losses.catalog_top_k_kl_loss, losses.catalog_top_k_reverse_kl_loss)


def logits(seed, items=ITEMS, tokens=TOKENS):
  rng = np.random.default_rng(seed)
  shapes = (tokens, 4), (items, 4), (items,)
  return FactoredLogits(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))


STUDENT = logits(0)
BEST = losses.catalog_top_k_targets(logits(1), K, temperature=1.5)
EVERY = Negatives(jnp.arange(ITEMS)[::-1], jnp.full(ITEMS, -jnp.log(float(ITEMS))))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("reduce_fn", [jnp.mean, None], ids=["mean", "each"])
def test_every_item_drawn_once_is_no_estimate(loss, reduce_fn):
  where = jnp.arange(TOKENS) != 2

  def total(student, **options):
    return jnp.sum(
      loss(student, BEST, temperature=1.5, where=where, reduce_fn=reduce_fn, **options)
    )

  found = jax.value_and_grad(total)(STUDENT, negatives=EVERY)
  expected = jax.value_and_grad(total)(STUDENT)
  for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


def test_the_estimate_is_unbiased_and_so_is_its_gradient():
  log_q = jax.nn.log_softmax(jnp.linspace(0, 2, ITEMS))
  flat = logits(3, tokens=2)
  kept = jnp.array([[3, 39, ITEMS], [7, 8, 9]])

  def rest(flat, items):
    return jnp.exp(losses.sampled_log_rest(flat, kept, Negatives(items, log_q[items])))

  draws = jax.random.categorical(jax.random.key(0), log_q, shape=(4000, 16))
  one = jax.jit(jax.vmap(lambda items: (rest(flat, items), jax.jacrev(rest)(flat, items).query)))
  values, slopes = (np.asarray(x, np.float64) for x in one(draws))

  z = np.asarray(flat.dense(), np.float64)
  left = np.ones_like(z)
  for token, items in enumerate(np.asarray(kept)):
    left[token, items[items < ITEMS]] = 0
  exact = (left * np.exp(z)).sum(-1)
  slope = (left * np.exp(z)) @ np.asarray(flat.table, np.float64)
  error = values.std(0) / np.sqrt(len(values))
  assert np.all(np.abs(values.mean(0) - exact) < 4 * error)
  own = np.stack([slopes[:, t, t] for t in range(2)], 1)
  error = own.std(0) / np.sqrt(len(own))
  assert np.all(np.abs(own.mean(0) - slope) < 4.5 * error)


def test_an_item_drawn_twice_counts_twice():
  kept = jnp.full((TOKENS, 1), ITEMS)
  log_q = jnp.full(4, -jnp.log(float(ITEMS)))
  found = losses.sampled_log_rest(STUDENT, kept, Negatives(jnp.array([3, 8, 3, 3]), log_q))
  z = np.asarray(STUDENT.dense())
  expected = np.log((3 * np.exp(z[:, 3]) + np.exp(z[:, 8])) * ITEMS / 4)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_negatives_that_are_all_kept_stay_finite(loss):
  items = jnp.tile(BEST.indices[0, :2], 3)
  negatives = Negatives(items, jnp.full(6, -3.0))
  value, grads = jax.value_and_grad(lambda s: loss(s, BEST, negatives=negatives))(STUDENT)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))


def test_an_index_out_of_range_is_visible():
  wrong = BEST._replace(indices=BEST.indices.at[1, 0].set(ITEMS))
  each = losses.catalog_top_k_kl_loss(STUDENT, wrong, negatives=EVERY, reduce_fn=None)
  assert np.isnan(each).tolist() == [False, True, False, False, False, False]


def test_nothing_grows_with_the_catalogue():
  """No array of tokens times items, in either pass."""
  items, tokens = 5000, 32
  student, best = (
    logits(0, items, tokens),
    losses.catalog_top_k_targets(logits(1, items, tokens), K),
  )
  negatives = Negatives(jnp.arange(64), jnp.full(64, -5.0))
  grad = jax.grad(lambda s: losses.catalog_top_k_kl_loss(s, best, negatives=negatives))
  memory = jax.jit(grad).lower(student).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * tokens * items


def test_blocks_and_axes_are_refused():
  for options in ({"block": 7}, {"axis_name": "model"}):
    with pytest.raises(ValueError, match="leave axis_name and block out"):
      losses.catalog_top_k_kl_loss(STUDENT, BEST, negatives=EVERY, **options)
