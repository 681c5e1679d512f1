"""Coverage, popularity and Gini in closed form."""

import numpy as np
import pytest

from kdjax import metrics
from kdjax.types import PAD


def test_coverage_counts_each_item_once():
  assert metrics.coverage(np.array([[0, 1], [1, PAD]]), num_items=8) == 0.25
  assert metrics.coverage(np.full((3, 2), PAD), num_items=8) == 0


def test_gini_of_equal_and_of_single_exposure():
  assert metrics.gini(np.arange(12).reshape(3, 4), num_items=12) == 0
  assert metrics.gini(np.zeros((5, 1), int), num_items=10) == pytest.approx(0.9)
  assert metrics.gini(np.full((3, 2), PAD), num_items=8) == 0
  shown = np.array([0] * 1 + [1] * 2 + [2] * 5)
  pairs = sum(abs(a - b) for a in (1, 2, 5, 0) for b in (1, 2, 5, 0))
  assert metrics.gini(shown[:, None], num_items=4) == pytest.approx(pairs / (2 * 4 * 8))


def test_popularity_averages_lists_not_items():
  counts = np.array([10, 0, 4])
  ids = np.array([[0, 1], [2, PAD], [PAD, PAD]])
  assert metrics.popularity(ids, counts) == (5 + 4) / 2
  assert metrics.log_popularity(ids, counts) == pytest.approx((np.log(11) / 2 + np.log(5)) / 2)
  assert metrics.popularity(ids[2:], counts) == 0


def test_ids_outside_the_catalogue_are_refused():
  with pytest.raises(ValueError, match="ids must lie"):
    metrics.coverage(np.array([[8]]), num_items=8)
  with pytest.raises(ValueError, match="ids must lie"):
    metrics.popularity(np.array([[-2]]), np.ones(3))
  with pytest.raises(ValueError, match="num_items"):
    metrics.gini(np.zeros((0, 1), int), num_items=0)
