import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import metrics


def ties(seed=0):
  """Scores with many ties, and graded targets."""
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 4, (6, 9)).astype(np.float32)
  labels = np.where(rng.random((6, 9)) < 0.3, rng.integers(1, 5, (6, 9)), 0)
  labels[2] = 0  # One without a target.
  row, items = np.nonzero(labels)
  offsets = np.searchsorted(row, np.arange(7))
  return scores, labels, items, offsets


def test_graded_gains_are_those_of_the_dense_metric():
  scores, labels, items, offsets = ties()
  every = np.broadcast_to(np.arange(9), scores.shape)
  found = metrics.rank_lists(scores, every, items, offsets)
  per_user = metrics.per_user(found, ks=[1, 5], gains=labels[labels > 0])
  some = labels.any(axis=1)
  for k in (1, 5):
    args = jnp.asarray(scores[some]), jnp.asarray(labels[some])
    expected = {
      "ndcg": metrics.ndcg_metric(*args, k=k, gain_fn=lambda x: x, reduce_fn=None),
      "mrr": metrics.mrr_metric(*args, k=k, reduce_fn=None),
      "recall": metrics.recall_metric(*args, k=k, reduce_fn=None),
    }
    for name, values in expected.items():
      np.testing.assert_allclose(per_user[f"{name}@{k}"], values, atol=1e-6, err_msg=name)


def test_whole_lists_are_ranked_as_a_catalogue_is():
  scores, _, items, offsets = ties(1)
  every = np.random.default_rng(2).permuted(np.tile(np.arange(9), (6, 1)), axis=1)
  listed = np.take_along_axis(scores, every, axis=1)
  found = metrics.rank_lists(listed, every, items, offsets)
  none = np.zeros(0, int), np.zeros(7, int)
  expected = metrics.rank_targets(np.eye(6), scores.T, *none, items, offsets)
  for ours, theirs in zip(found[:5], expected[:5], strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_what_is_not_listed_is_not_found_however_short_the_list():
  scores = np.array([[0.9, 0.5, -np.inf]])
  found = metrics.rank_lists(scores, np.array([[3, 4, 7]]), np.array([4, 7, 8]), np.array([0, 3]))
  assert found.greater.tolist()[0] == 1
  per_user = metrics.per_user(found, ks=[100])
  assert per_user["recall@100"].tolist() == [pytest.approx(1 / 3)]
  assert per_user["mrr@100"].tolist() == [0.5]


@pytest.mark.parametrize("gains", [np.ones(2), np.array([1.0, 0.0, 2.0])])
def test_gains_are_positive_and_one_a_target(gains):
  found = metrics.rank_lists(np.ones([1, 3]), np.arange(3)[None], np.arange(3), np.array([0, 3]))
  with pytest.raises(ValueError, match="gains"):
    metrics.per_user(found, gains=gains)


def test_lists_that_do_not_fit_are_refused():
  ok = np.ones([1, 2]), np.array([[0, 1]]), np.array([0]), np.array([0, 1])
  for place, wrong in ((0, np.ones([2, 2])), (3, np.array([0, 2])), (0, np.full([1, 2], np.nan))):
    with pytest.raises(ValueError, match=r"fit|targets"):
      metrics.rank_lists(*ok[:place], wrong, *ok[place + 1 :])
