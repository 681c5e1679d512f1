"""Ranking metrics against enumerated tie orders, rax, scikit-learn and their contracts."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import metrics
from kdjax.reduce import totals

METRICS = {
  "hr": metrics.hit_rate_metric,
  "recall": metrics.recall_metric,
  "precision": metrics.precision_metric,
  "ndcg": metrics.ndcg_metric,
  "mrr": metrics.mrr_metric,
  "map": metrics.map_metric,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@functools.partial(jax.jit, static_argnames="k")
def all_metrics(scores, labels, *, k):
  return {name: metric(scores, labels, k=k) for name, metric in METRICS.items()}


def ordered_values(labels, k):
  """All six metrics of labels already in rank order, from their definitions."""
  relevant = [label > 0 for label in labels]
  num_relevant = sum(relevant)
  names = dict.fromkeys(METRICS, 0.0)
  if not num_relevant:
    return names
  top = relevant[:k]
  gains = [2.0**label - 1 for label in labels]
  ideal = sorted(gains, reverse=True)
  discounted = [sum(g / math.log2(r + 2) for r, g in enumerate(x[:k])) for x in (gains, ideal)]
  first = relevant.index(True)
  return {
    "hr": float(any(top)),
    "recall": sum(top) / num_relevant,
    "precision": sum(top) / k,
    "ndcg": discounted[0] / discounted[1],
    "mrr": 1 / (first + 1) if first < k else 0.0,
    "map": sum(sum(top[: r + 1]) / (r + 1) for r in range(len(top)) if top[r]) / num_relevant,
  }


def enumerated(scores, labels, k):
  """Mean over every order of the candidates that the scores allow."""
  orders = [
    order
    for order in itertools.permutations(range(len(scores)))
    if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
  ]
  values = [ordered_values([labels[i] for i in order], k) for order in orders]
  return {name: sum(value[name] for value in values) / len(values) for name in METRICS}


@settings(max_examples=20, deadline=None)
@given(
  st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=6, max_size=6),
  st.sampled_from([1, 3, 6]),
)
def test_equals_the_mean_over_all_tie_orders(pairs, k):
  scores, labels = zip(*pairs, strict=True)
  expected = enumerated(scores, labels, k)
  got = all_metrics(jnp.array(scores, jnp.float32), jnp.array(labels), k=k)
  for name, value in got.items():
    np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_a_constant_scorer_gets_the_chance_level():
  labels = jnp.zeros(50).at[jnp.array([3, 20])].set(1)
  chance = {
    "hr": 1 - math.comb(48, 10) / math.comb(50, 10),
    "recall": 10 / 50,
    "precision": 2 / 50,
  }
  for name, value in chance.items():
    np.testing.assert_allclose(METRICS[name](jnp.full(50, 7.0), labels, k=10), value, rtol=1e-5)
  one = jnp.zeros(50).at[9].set(1)
  harmonic = sum(1 / r for r in range(1, 11)) / 50
  np.testing.assert_allclose(metrics.mrr_metric(jnp.zeros(50), one, k=10), harmonic, rtol=1e-5)
  np.testing.assert_allclose(metrics.map_metric(jnp.zeros(50), one, k=10), harmonic, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5, None])
def test_agrees_with_rax(k):
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.permutation(9 * 20).reshape(9, 20), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 4, (9, 20)), jnp.float32)
  binary = (labels > 1).astype(jnp.float32)
  support = jnp.asarray(rng.random((9, 20)) < 0.8)
  pairs = [
    (metrics.ndcg_metric, rax.ndcg_metric, labels),
    (metrics.mrr_metric, rax.mrr_metric, binary),
    (metrics.map_metric, rax.ap_metric, binary),
    (metrics.recall_metric, rax.recall_metric, binary),
  ]
  for ours, theirs, relevance in pairs:
    # rax's own broadcasting promotes ranks.
    with jax.numpy_rank_promotion("allow"):
      expected = theirs(scores, relevance, where=support, topn=k, reduce_fn=None)
    got = jax.jit(functools.partial(ours, k=k, reduce_fn=None))(scores, relevance, support=support)
    np.testing.assert_allclose(got, expected, atol=1e-6, err_msg=ours.__name__)


def test_agrees_with_scikit_learn_under_ties():
  rng = np.random.default_rng(1)
  scores, gains = rng.integers(0, 4, (30, 12)), rng.integers(0, 4, (30, 12))
  for k in (1, 5, 12):
    got = metrics.ndcg_metric(
      jnp.asarray(scores, jnp.float32), jnp.asarray(gains), k=k, gain_fn=lambda label: label
    )
    np.testing.assert_allclose(got, sklearn.metrics.ndcg_score(gains, scores, k=k), rtol=1e-5)


@every_metric
def test_candidates_out_of_support_are_as_if_removed(metric):
  rng = np.random.default_rng(2)
  scores = jnp.asarray(rng.integers(0, 5, (6, 9)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 2, (6, 9)))
  support = jnp.zeros((6, 9), bool).at[:, ::2].set(True)
  scores = jnp.where(support, scores, jnp.nan)  # Absent scores may be anything.
  for k in (3, None):
    jitted = jax.jit(functools.partial(metric, k=k, reduce_fn=None))
    got = jitted(scores, labels, support=support)
    expected = jitted(scores[:, ::2], labels[:, ::2])
    np.testing.assert_allclose(got, expected, atol=1e-6)


@every_metric
def test_reductions_keep_the_contract(metric):
  rng = np.random.default_rng(3)
  scores = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 2, (2, 5, 8)))
  where = jnp.asarray(rng.random((2, 5)) < 0.5)
  each = metric(scores, labels, reduce_fn=None)
  assert each.shape == (2, 5)
  assert each.dtype == jnp.float32
  masked = metric(scores, labels, where=where)
  np.testing.assert_allclose(masked, np.mean(np.asarray(each)[np.asarray(where)]), rtol=1e-6)
  assert metric(scores, labels, where=jnp.zeros((2, 5), bool)) == 0
  parts = [metric(scores[i], labels[i], where=where[i], reduce_fn=totals) for i in range(2)]
  np.testing.assert_allclose((parts[0] + parts[1]).compute(), masked, rtol=1e-6)
  jitted = jax.jit(functools.partial(metric, k=4))(scores, labels)
  np.testing.assert_allclose(jitted, metric(scores, labels, k=4), rtol=1e-6)
  mapped = jax.vmap(jax.vmap(functools.partial(metric, k=4)))(scores, labels)
  np.testing.assert_allclose(mapped, metric(scores, labels, k=4, reduce_fn=None), rtol=1e-6)
  half = metric(scores.astype(jnp.bfloat16), labels)
  assert half.dtype == jnp.float32


@every_metric
def test_nan_stays_visible_and_nothing_relevant_scores_0(metric):
  scores = jnp.array([[1.0, jnp.nan, 0.0], [1.0, 2.0, 3.0]])
  values = metric(scores, jnp.array([[1, 0, 0], [0, 0, 0]]), reduce_fn=None)
  assert jnp.isnan(values[0])
  assert values[1] == 0
  assert metric(scores, jnp.ones((2, 3)), where=jnp.array([False, True]), k=3) == pytest.approx(1)


@every_metric
def test_bad_shapes_are_refused(metric):
  with pytest.raises(ValueError, match="labels has shape"):
    metric(jnp.ones(3), jnp.ones(2))
  with pytest.raises(ValueError, match="support has shape"):
    metric(jnp.ones(3), jnp.ones(3), support=jnp.ones(2, bool))
  with pytest.raises(ValueError, match="k must be positive"):
    metric(jnp.ones(3), jnp.ones(3), k=0)
  with pytest.raises(ValueError, match="where has shape"):
    metric(jnp.ones((2, 3)), jnp.ones((2, 3)), where=jnp.ones((2, 3), bool))


def test_infinite_scores_rank_as_such():
  scores = jnp.array([-jnp.inf, 0.0, jnp.inf, -jnp.inf])
  assert metrics.mrr_metric(scores, jnp.array([0, 0, 1, 0])) == 1
  np.testing.assert_allclose(metrics.hit_rate_metric(scores, jnp.array([1, 0, 0, 0]), k=3), 0.5)
