"""Sampled metrics: the draws are fair, and the names confess."""

import jax
import numpy as np
import pytest

from kdjax import metrics


def setup(users=40, items=30):
  rng = np.random.default_rng(0)
  queries, table = rng.normal(size=(users, 4)), rng.normal(size=(items, 4))
  seen = rng.integers(0, items, users * 5), np.arange(users + 1) * 5
  targets = rng.integers(0, items, users), np.arange(users + 1)
  return queries.astype(np.float32), table.astype(np.float32), *seen, *targets


def test_names_say_sampled_and_the_key_decides():
  args = setup()
  ranks = metrics.sampled_rank_targets(*args, key=jax.random.key(0), num_negatives=7)
  names = metrics.summarize(ranks, ks=[5])
  assert all(name.startswith("sampled7_") for name in names)
  assert "sampled7_ndcg@5" in names
  again = metrics.sampled_rank_targets(
    *args, key=jax.random.key(0), num_negatives=7, targets_per_block=16
  )
  np.testing.assert_array_equal(ranks.greater, again.greater)
  other = metrics.sampled_rank_targets(*args, key=jax.random.key(1), num_negatives=7)
  assert np.any(ranks.greater != other.greater)


def test_the_share_above_estimates_that_of_the_whole_catalogue():
  """Uniform over unseen items: `greater / negatives` is unbiased for the share that is better."""
  args = setup()
  sampled = metrics.sampled_rank_targets(*args, key=jax.random.key(2), num_negatives=20_000)
  full = metrics.rank_targets(*args)
  seen = [set(args[2][u * 5 : u * 5 + 5]) - {args[4][u]} for u in range(40)]
  others = np.array([30 - 1 - len(row) for row in seen])
  np.testing.assert_allclose(sampled.greater / 20_000, full.greater / others, atol=0.02)


def test_seen_items_and_targets_are_never_drawn():
  """Only item 3 is left, and it scores lower: no negative can stand above the target."""
  table = np.array([[9.0], [8.0], [2.0], [1.0]], np.float32)
  ranks = metrics.sampled_rank_targets(
    np.ones((1, 1), np.float32),
    table,
    np.array([0, 1]),
    np.array([0, 2]),
    np.array([2]),
    np.array([0, 1]),
    key=jax.random.key(0),
  )
  assert (ranks.greater.item(), ranks.tied.item(), ranks.num_negatives) == (0, 1, 100)


def test_a_user_who_has_seen_everything_is_an_error():
  with pytest.raises(ValueError, match="user 0 has no unseen item"):
    metrics.sampled_rank_targets(
      np.ones((1, 1)),
      np.ones((2, 1)),
      np.array([0]),
      np.array([0, 1]),
      np.array([1]),
      np.array([0, 1]),
      key=jax.random.key(0),
    )
