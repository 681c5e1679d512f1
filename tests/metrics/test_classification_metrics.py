"""Classification metrics against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import metrics
from kdjax.reduce import totals

BINARY = {
  "accuracy": (metrics.binary_accuracy_metric, sklearn.metrics.accuracy_score),
  "precision": (metrics.binary_precision_metric, sklearn.metrics.precision_score),
  "recall": (metrics.binary_recall_metric, sklearn.metrics.recall_score),
  "f1": (metrics.binary_f1_metric, sklearn.metrics.f1_score),
}
every_binary = pytest.mark.parametrize(("metric", "oracle"), BINARY.values(), ids=BINARY)


def clicks(seed=0, size=200):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, size)
  return jnp.asarray(rng.normal(size=size) + labels, jnp.float32), jnp.asarray(labels)


@every_binary
def test_binary_metrics_agree_with_scikit_learn(metric, oracle):
  logits, labels = clicks()
  np.testing.assert_allclose(
    metric(logits, labels, threshold=0.3), oracle(labels, logits > 0.3), rtol=1e-6
  )
  where = jnp.arange(200) % 3 > 0
  np.testing.assert_allclose(
    metric(logits, labels, where=where), oracle(labels[where], logits[where] > 0), rtol=1e-6
  )


@every_binary
def test_binary_metrics_merge_exactly_across_unequal_batches(metric, oracle):
  logits, labels = clicks(1)
  parts = [metric(logits[s], labels[s], reduce_fn=totals) for s in (slice(7), slice(7, None))]
  np.testing.assert_allclose((parts[0] + parts[1]).compute(), oracle(labels, logits > 0), rtol=1e-6)
  np.testing.assert_allclose(jax.jit(metric)(logits, labels), metric(logits, labels), rtol=1e-6)
  assert metric(logits, labels, where=jnp.zeros(200, bool)) == 0
  assert jnp.isnan(metric(logits.at[3].set(jnp.nan), jnp.ones(200, int)))


def test_log_loss_agrees_with_scikit_learn():
  logits, labels = clicks(2)
  expected = sklearn.metrics.log_loss(labels, np.asarray(jax.nn.sigmoid(logits), np.float64))
  np.testing.assert_allclose(metrics.binary_log_loss_metric(logits, labels), expected, rtol=1e-5)
  extreme = metrics.binary_log_loss_metric(jnp.array([1e4, -1e4]), jnp.array([0, 1]))
  assert extreme == 1e4

  rng = np.random.default_rng(3)
  logits, labels = jnp.asarray(rng.normal(size=(50, 4)), jnp.float32), rng.integers(0, 4, 50)
  probs = np.asarray(jax.nn.softmax(logits), np.float64)
  probs /= probs.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    metrics.log_loss_metric(logits, jnp.asarray(labels)),
    sklearn.metrics.log_loss(labels, probs, labels=range(4)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    metrics.accuracy_metric(logits, jnp.asarray(labels)),
    sklearn.metrics.accuracy_score(labels, probs.argmax(axis=1)),
    rtol=1e-6,
  )


def test_accuracy_of_a_constant_scorer_is_chance_over_the_classes_that_exist():
  labels = jnp.array([0, 1, 2])
  assert metrics.accuracy_metric(jnp.zeros((3, 4)), labels) == 0.25
  support = jnp.broadcast_to(jnp.array([True, True, True, False]), (3, 4))
  logits = jnp.zeros((3, 4)).at[:, 3].set(9.0)
  np.testing.assert_allclose(metrics.accuracy_metric(logits, labels, support=support), 1 / 3)
  np.testing.assert_allclose(
    metrics.log_loss_metric(logits, labels, support=support), np.log(3), rtol=1e-6
  )
  assert jnp.isnan(metrics.accuracy_metric(logits.at[0, 0].set(jnp.nan), labels))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=12, max_size=12))
def test_auc_agrees_with_scikit_learn_under_ties(pairs):
  scores, labels = (np.array(x) for x in zip(*pairs, strict=True))
  got = jax.jit(metrics.auc_metric)(scores.astype(np.float32), labels)
  if labels.all() or not labels.any():
    assert jnp.isnan(got)
  else:
    np.testing.assert_allclose(got, sklearn.metrics.roc_auc_score(labels, scores), atol=1e-6)


def test_auc_of_lists_masks_and_chance():
  rng = np.random.default_rng(4)
  scores = jnp.asarray(rng.integers(0, 9, (5, 40)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 2, (5, 40)))
  each = metrics.auc_metric(scores, labels, reduce_fn=None)
  for row in range(5):
    expected = sklearn.metrics.roc_auc_score(labels[row], scores[row])
    np.testing.assert_allclose(each[row], expected, rtol=1e-5)
  support = jnp.arange(40)[None, :] < jnp.array([40, 30, 20, 35, 25])[:, None]
  masked = metrics.auc_metric(
    scores.at[1, 39].set(jnp.nan), labels, support=support, reduce_fn=None
  )
  expected = sklearn.metrics.roc_auc_score(labels[1, :30], scores[1, :30])
  np.testing.assert_allclose(masked[1], expected, rtol=1e-5)
  assert metrics.auc_metric(jnp.zeros(9), jnp.arange(9) < 4) == 0.5
  assert metrics.auc_metric(jnp.zeros(9), jnp.ones(9), support=jnp.zeros(9, bool)) == 0
  jitted = jax.jit(metrics.auc_metric)(scores, labels)
  np.testing.assert_allclose(jitted, np.mean(each), rtol=1e-6)


def test_auc_is_exact_enough_on_a_large_set():
  rng = np.random.default_rng(5)
  labels = rng.random(300_000) < 0.03
  scores = (rng.normal(size=300_000) + labels).astype(np.float32)
  got = metrics.auc_metric(jnp.asarray(scores), jnp.asarray(labels))
  np.testing.assert_allclose(got, sklearn.metrics.roc_auc_score(labels, scores), rtol=2e-6)


def test_bad_shapes_are_refused():
  with pytest.raises(ValueError, match="labels has shape"):
    metrics.accuracy_metric(jnp.ones((2, 3)), jnp.ones(3, int))
  with pytest.raises(ValueError, match="support has shape"):
    metrics.log_loss_metric(jnp.ones((2, 3)), jnp.ones(2, int), support=jnp.ones((2, 2), bool))
  with pytest.raises(ValueError, match="labels has shape"):
    metrics.binary_f1_metric(jnp.ones(2), jnp.ones(3))
  with pytest.raises(ValueError, match="labels has shape"):
    metrics.auc_metric(jnp.ones(2), jnp.ones(3))
