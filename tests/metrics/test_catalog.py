"""The whole-catalogue evaluator against brute force, list metrics and ranx."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import metrics
from kdjax.quant.qtensor import quantize
from kdjax.types import PAD

LIST_METRICS = {
  "hr": metrics.hit_rate_metric,
  "recall": metrics.recall_metric,
  "precision": metrics.precision_metric,
  "ndcg": metrics.ndcg_metric,
  "mrr": metrics.mrr_metric,
  "map": metrics.map_metric,
}


@functools.partial(jax.jit, static_argnames="k")
def list_metrics(scores, labels, support, *, k):
  return {
    name: metric(scores, labels, k=k, support=support, reduce_fn=None)
    for name, metric in LIST_METRICS.items()
  }


def ragged(rows):
  """Lists as (items, offsets)."""
  items = np.array([item for row in rows for item in row], np.int32)
  return items, np.cumsum([0, *map(len, rows)])


def case(seed=0, *, users=37, items=23, levels=None, max_targets=4):
  """Random queries, table and lists; with `levels` the scores are few integers, full of ties."""
  rng = np.random.default_rng(seed)
  queries, table = rng.normal(size=(users, 5)), rng.normal(size=(items, 5))
  if levels:
    queries = rng.integers(0, levels, (users, 2))
    table = rng.integers(0, levels, (items, 2))
  seen = [list(rng.integers(0, items, rng.integers(0, 15))) for _ in range(users)]
  targets = [list(rng.integers(0, items, rng.integers(0, max_targets + 1))) for _ in range(users)]
  return queries.astype(np.float32), table.astype(np.float32), seen, targets


def brute_force(scores, seen, targets):
  """(user, item, greater, tied) of every target, one at a time."""
  found = []
  for user, row in enumerate(targets):
    left = sorted(set(range(scores.shape[1])) - (set(seen[user]) - set(row)))
    for item in sorted(set(row)):
      others = scores[user][left]
      found.append(
        (user, item, (others > scores[user, item]).sum(), (others == scores[user, item]).sum())
      )
  return found


def rows_of(ranks):
  users = np.repeat(ranks.users, np.diff(ranks.offsets))
  return list(zip(users, ranks.items, ranks.greater, ranks.tied, strict=True))


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("block", [None, 8, 64])
def test_ranks_equal_brute_force(levels, block):
  queries, table, seen, targets = case(levels=levels)
  ranks = metrics.rank_targets(
    queries, table, *ragged(seen), *ragged(targets), users_per_block=block
  )
  assert rows_of(ranks) == brute_force(queries @ table.T, seen, targets)


def test_a_bias_counts():
  queries, table, seen, targets = case(1, levels=3)
  bias = np.arange(23, dtype=np.float32) % 4
  ranks = metrics.rank_targets(queries, table, *ragged(seen), *ragged(targets), bias=bias)
  assert rows_of(ranks) == brute_force(queries @ table.T + bias, seen, targets)


def scorer(state, rows, ids):
  """Not factored: a distance."""
  return -jnp.abs(state["user"][rows][:, None] - state["item"][ids][None, :])


@pytest.mark.parametrize("items_per_block", [None, 1, 7, 23, 100])
def test_any_scorer_is_ranked_in_blocks_of_items(items_per_block):
  _, _, seen, targets = case(2)
  rng = np.random.default_rng(3)
  state = {"user": rng.integers(0, 9, 37), "item": rng.integers(0, 9, 23)}
  scores = -np.abs(state["user"][:, None] - state["item"][None, :])
  options = {"num_items": 23, "items_per_block": items_per_block, "users_per_block": 8}
  state = jax.tree.map(jnp.asarray, state)
  ranks = metrics.rank_targets_with(scorer, state, *ragged(seen), *ragged(targets), **options)
  assert rows_of(ranks) == brute_force(scores, seen, targets)
  best = metrics.top_k_with(scorer, state, *ragged(seen), k=4, **options)
  unseen = scores.astype(float)
  for user, row in enumerate(seen):
    unseen[user, row] = -np.inf
  np.testing.assert_array_equal(best.ids, np.argsort(-unseen, axis=1, kind="stable")[:, :4])
  np.testing.assert_array_equal(best.scores, np.take_along_axis(unseen, best.ids, axis=1))


def test_an_int8_table_is_ranked_by_its_own_products():
  queries, table, seen, targets = case(4)
  small = quantize(jnp.asarray(table), axis=-1)
  ranks = metrics.rank_targets(queries, small, *ragged(seen), *ragged(targets), users_per_block=64)
  order = np.argsort([-len(set(row)) for row in targets], kind="stable")
  scores = np.zeros((37, 23), np.float32)
  scores[order] = np.asarray(small.rdot(jnp.asarray(queries[order])))
  assert rows_of(ranks) == brute_force(scores, seen, targets)


@pytest.mark.parametrize("levels", [None, 2, 3])
def test_per_user_metrics_equal_the_list_metrics(levels):
  queries, table, seen, targets = case(5, levels=levels)
  ranks = metrics.rank_targets(queries, table, *ragged(seen), *ragged(targets))
  labels, support = np.zeros((37, 23), int), np.ones((37, 23), bool)
  for user in range(37):
    support[user, seen[user]] = False
    support[user, targets[user]] = True
    labels[user, targets[user]] = 1
  scores = jnp.asarray(queries @ table.T)
  for k in (1, 5, 23):
    got = metrics.per_user(ranks, ks=[k])
    for name, each in list_metrics(scores, labels, support, k=k).items():
      values = np.asarray(each)[ranks.users]
      np.testing.assert_allclose(got[f"{name}@{k}"], values, atol=3e-6, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_metrics_of_ranks_lie_in_0_1_and_grow_with_k(data):
  """Whatever the ranks: recall, hr and mrr never fall with k, and hr bounds recall and mrr."""
  counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
  greater, tied = [], []
  for count in counts:
    levels = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    above = 0
    for level in sorted(set(levels)):
      size = levels.count(level) + data.draw(st.integers(0, 3))
      greater += [above] * levels.count(level)
      tied += [size] * levels.count(level)
      above += size + data.draw(st.integers(0, 2))
  offsets = np.cumsum([0, *counts])
  ranks = metrics.Ranks(
    np.arange(len(counts)), offsets, np.arange(offsets[-1]), np.array(greater), np.array(tied)
  )
  values = metrics.per_user(ranks, ks=range(1, 30))
  for name, value in values.items():
    assert np.all((value >= -1e-12) & (value <= 1 + 1e-12)), name
  for k in range(1, 30):
    assert np.all(values[f"hr@{k}"] >= values[f"recall@{k}"] - 1e-12)
    assert np.all(values[f"hr@{k}"] >= values[f"mrr@{k}"] - 1e-12)
    for name in ("hr", "recall", "mrr", "map"):
      if k > 1:
        assert np.all(values[f"{name}@{k}"] >= values[f"{name}@{k - 1}"] - 1e-12)


@pytest.mark.parametrize(("users", "items", "dim"), [(3, 17, 50), (70, 3416, 64), (9, 997, 33)])
def test_a_constant_scorer_gets_exactly_the_chance_level(users, items, dim):
  """Equal rows must score equal in the last bit wherever they stand in the product."""
  rng = np.random.default_rng(6)
  queries = rng.normal(size=(users, dim)).astype(np.float32)
  table = np.broadcast_to(rng.normal(size=(1, dim)).astype(np.float32), (items, dim))
  nothing = np.zeros(0, np.int32), np.zeros(users + 1, int)
  targets = rng.integers(0, items, users), np.arange(users + 1)
  ranks = metrics.rank_targets(queries, table, *nothing, *targets)
  assert np.all(ranks.greater == 0)
  assert np.all(ranks.tied == items)
  summary = metrics.summarize(ranks, ks=[10])
  assert summary["hr@10"] == pytest.approx(10 / items)
  assert summary["ndcg@10"] == pytest.approx(sum(1 / np.log2(np.arange(2, 12))) / items)
  assert summary["mrr@10"] == pytest.approx(sum(1 / np.arange(1, 11)) / items)


def test_top_k_equals_a_stable_sort_and_pads():
  queries, table, seen, _ = case(7, levels=3)
  seen[5] = list(range(21))
  best = metrics.top_k(queries, table, *ragged(seen), k=6, users_per_block=16)
  scores = queries @ table.T
  for user, row in enumerate(seen):
    scores[user, row] = -np.inf
  expected = np.argsort(-scores, axis=1, kind="stable")[:, :6]
  values = np.take_along_axis(scores, expected, axis=1)
  np.testing.assert_array_equal(best.ids, np.where(values == -np.inf, PAD, expected))
  np.testing.assert_array_equal(best.scores, values)
  assert (best.ids[5] == PAD).sum() == 4


def test_scores_of_minus_infinity_are_not_confused_with_removed_items():
  table = np.array([[0.0], [-np.inf], [-np.inf], [1.0]], np.float32)
  ranks = metrics.rank_targets(
    np.ones((1, 1), np.float32), table, *ragged([[2, 3]]), *ragged([[1]])
  )
  assert rows_of(ranks) == [(0, 1, 1, 1)]


def test_nan_is_an_error_not_a_good_rank():
  queries, table, seen, targets = case(8)
  user = next(u for u, row in enumerate(targets) if row)
  broken = queries.copy()
  broken[user] = np.nan
  with pytest.raises(ValueError, match=f"for user {user} is NaN"):
    metrics.rank_targets(broken, table, *ragged(seen), *ragged(targets))
  table = np.array([[1.0], [np.nan], [0.0]], np.float32)
  ranks = metrics.rank_targets(np.ones((1, 1)), table, *ragged([[]]), *ragged([[0]]))
  assert ranks.greater.tolist() == [1]  # A NaN competitor never helps.


def test_bad_lists_are_refused():
  queries, table = np.ones((2, 3)), np.ones((4, 3))
  fine = ragged([[0], [1]])

  def rank(seen=fine, targets=fine, queries=queries):
    return metrics.rank_targets(queries, table, *seen, *targets)

  with pytest.raises(ValueError, match=r"target_items must lie in \[0, 4\)"):
    rank(targets=ragged([[4], []]))
  with pytest.raises(ValueError, match="seen_items must lie"):
    rank(seen=ragged([[PAD], []]))
  with pytest.raises(ValueError, match="seen_offsets end at 2"):
    rank(seen=(np.arange(3), np.array([0, 1, 2])))
  with pytest.raises(ValueError, match="never decrease"):
    rank(seen=(np.arange(2), np.array([0, 3, 2])))
  with pytest.raises(ValueError, match="target_offsets of 1"):
    rank(targets=ragged([[0]]))
  with pytest.raises(ValueError, match="do not fit a table"):
    rank(queries=np.ones((2, 4)))
  with pytest.raises(ValueError, match="k must lie"):
    metrics.top_k(queries, table, *fine, k=5)
  with pytest.raises(ValueError, match="2 users but there are 3 queries"):
    rank(queries=np.ones((3, 3)))


def test_no_targets_at_all():
  ranks = metrics.rank_targets(
    np.ones((2, 3)), np.ones((4, 3)), *ragged([[0], []]), *ragged([[], []])
  )
  assert rows_of(ranks) == []
  assert len(metrics.per_user(ranks, ks=[5])["hr@5"]) == 0
  with pytest.raises(ValueError, match="no user has a target"):
    metrics.summarize(ranks)
  with pytest.raises(ValueError, match="every k must be positive"):
    metrics.per_user(ranks, ks=[0])
