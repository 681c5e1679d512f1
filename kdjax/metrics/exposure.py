"""What a recommender shows its users, beyond whether it is right: reach and popularity."""

import numpy as np

from kdjax.types import PAD


def coverage(top_ids: np.ndarray, *, num_items: int) -> float:
  r"""Share of the catalogue in anyone's list: $|\bigcup_u L_u| / V$.

  Args:
    top_ids: int `[U, k]`, recommended ids; PAD where there is none.
    num_items: V, the size of the catalogue.

  Returns:
    float in [0, 1].

  Raises:
    ValueError: if an id is outside the catalogue, or num_items is not positive.

  Example:
    >>> coverage(np.array([[0, 1], [1, 2]]), num_items=4)
    0.75
  """
  return float(np.count_nonzero(_exposure(top_ids, num_items)) / num_items)


def popularity(top_ids: np.ndarray, item_counts: np.ndarray) -> float:
  r"""Average popularity of what is recommended: mean interactions an item had in training.

  $$\mathrm{ARP} = \frac{1}{|U|} \sum_u \frac{1}{|L_u|} \sum_{i \in L_u} c_i$$

  Args:
    top_ids: int `[U, k]`, recommended ids; PAD where there is none.
    item_counts: int `[V]`, interactions of every item in training.

  Returns:
    float, interactions; users with an empty list do not count, 0 if there is no other.

  Raises:
    ValueError: if an id is outside the catalogue.

  Example:
    >>> popularity(np.array([[0, 1], [1, -1]]), np.array([4, 2, 7]))
    2.5

  Reference:
    Yin et al., Challenging the Long Tail Recommendation, 2012.
  """
  return _mean_of_lists(top_ids, np.asarray(item_counts, np.float64))


def log_popularity(top_ids: np.ndarray, item_counts: np.ndarray) -> float:
  """`popularity` with log(1 + count) for the count: the head does not drown the tail.

  Args:
    top_ids: int `[U, k]`, recommended ids; PAD where there is none.
    item_counts: int `[V]`, interactions of every item in training.

  Returns:
    float, nats.

  Raises:
    ValueError: if an id is outside the catalogue.

  Example:
    >>> round(log_popularity(np.array([[0], [1]]), np.array([0, 1])), 4)
    0.3466
  """
  return _mean_of_lists(top_ids, np.log1p(np.asarray(item_counts, np.float64)))


def gini(top_ids: np.ndarray, *, num_items: int) -> float:
  r"""Gini index of exposure: 0 if all items are shown equally often, near 1 if few are.

  $$G = \frac{1}{V \sum_i x_i} \sum_{r=1}^{V} (2 r - V - 1) \, x_{(r)}$$

  with $x_{(r)}$ the r-th smallest number of lists an item is in.

  Args:
    top_ids: int `[U, k]`, recommended ids; PAD where there is none.
    num_items: V, the size of the catalogue.

  Returns:
    float in [0, 1); 0 if nothing is recommended.

  Raises:
    ValueError: if an id is outside the catalogue, or num_items is not positive.

  Example:
    >>> gini(np.array([[0], [0]]), num_items=4)
    0.75
  """
  shown = np.sort(_exposure(top_ids, num_items)).astype(np.float64)
  if not shown.any():
    return 0.0
  ranks = np.arange(1, num_items + 1)
  return float(((2 * ranks - num_items - 1) @ shown) / (num_items * shown.sum()))


def _exposure(top_ids: np.ndarray, num_items: int) -> np.ndarray:
  """How many lists each item is in: int64 `[V]`."""
  if num_items < 1:
    raise ValueError(f"num_items must be positive, got {num_items}")
  ids = np.asarray(top_ids)
  _check_ids(ids, num_items)
  return np.bincount(ids[ids != PAD].reshape(-1), minlength=num_items)


def _mean_of_lists(top_ids: np.ndarray, values: np.ndarray) -> float:
  ids = np.asarray(top_ids)
  _check_ids(ids, len(values))
  exists = ids != PAD
  sums = np.where(exists, values[np.where(exists, ids, 0)], 0.0).sum(axis=-1)
  lengths = exists.sum(axis=-1)
  filled = lengths > 0
  return float((sums[filled] / lengths[filled]).mean()) if filled.any() else 0.0


def _check_ids(ids: np.ndarray, num_items: int) -> None:
  if ids.size and not (ids.min() >= PAD and ids.max() < num_items):
    raise ValueError(f"ids must lie in [0, {num_items}), got {ids.min()} to {ids.max()}")
