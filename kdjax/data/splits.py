"""Which events count, and which part each belongs to: vectorised rules on flat arrays."""

from typing import Literal

import numpy as np

from kdjax.data.errors import DataError

TRAIN, VALID, TEST = 0, 1, 2
SplitRule = Literal["leave_one_out", "time", "ratio"]


def k_core_mask(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
  """The largest set of events in which every user and every item has at least k events.

  Users and items below k are dropped in turn until none is left to drop; the fixed point does not
  depend on the order of dropping.

  Args:
    user: int `[N]`, not negative.
    item: int `[N]`, not negative.
    k: at least 1; 1 keeps all.

  Returns:
    bool `[N]`, True where the event stays.

  Example:
    >>> user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
    >>> k_core_mask(user, item, 2).tolist()
    [True, True, True, True, False]
  """
  kept = np.arange(len(user))
  while len(kept):
    u, i = user[kept], item[kept]
    stay = (np.bincount(u)[u] >= k) & (np.bincount(i)[i] >= k)
    if stay.all():
      break
    kept = kept[stay]
  mask = np.zeros(len(user), bool)
  mask[kept] = True
  return mask


def leave_one_out(offsets: np.ndarray, *, min_sequence: int = 4) -> np.ndarray:
  """The last event of a user is for test, the second last for validation.

  Args:
    offsets: int64 `[U + 1]`, where each user's events begin, in time order.
    min_sequence: users with fewer events stay in training whole; at least 3.

  Returns:
    int8 `[N]`: 0 train, 1 validation, 2 test.

  Example:
    >>> leave_one_out(np.array([0, 5, 7])).tolist()
    [0, 0, 0, 1, 2, 0, 0]
  """
  part = np.zeros(int(offsets[-1]), np.int8)
  ends = offsets[1:][np.diff(offsets) >= min_sequence]
  part[ends - 2], part[ends - 1] = VALID, TEST
  return part


def by_ratio(
  offsets: np.ndarray, *, valid_fraction: float, test_fraction: float, min_sequence: int = 4
) -> np.ndarray:
  """The last share of each user's events is for test, the share before it for validation.

  A share is rounded down but holds at least one event when its fraction is not zero.

  Args:
    offsets: int64 `[U + 1]`, where each user's events begin, in time order.
    valid_fraction: share of a user's events for validation.
    test_fraction: share for test; the two sum to less than 1.
    min_sequence: users with fewer events stay in training whole; at least 3.

  Returns:
    int8 `[N]`: 0 train, 1 validation, 2 test.

  Example:
    >>> by_ratio(np.array([0, 10, 13]), valid_fraction=0.2, test_fraction=0.1).tolist()
    [0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0]
  """
  counts = np.diff(offsets)
  long = counts >= min_sequence
  test = _share(counts, test_fraction) * long
  valid = _share(counts, valid_fraction) * long
  left = np.repeat(offsets[1:], counts) - np.arange(offsets[-1])  # 1 for a user's last event.
  part = np.zeros(int(offsets[-1]), np.int8)
  part[left <= np.repeat(test + valid, counts)] = VALID
  part[left <= np.repeat(test, counts)] = TEST
  return part


def _share(counts: np.ndarray, fraction: float) -> np.ndarray:
  if not fraction:
    return np.zeros_like(counts)
  # The epsilon keeps 10 * 0.3 = 2.9999999999999996 at 3.
  return np.maximum(1, np.floor(counts * fraction + 1e-9).astype(counts.dtype))


def by_time(timestamp: np.ndarray, *, valid_fraction: float, test_fraction: float) -> np.ndarray:
  """Events before one moment are for training, before a later one for validation, then test.

  The moments are quantiles of all timestamps. Events of the same second share a part, so that
  nothing of the future is in the training data.

  Args:
    timestamp: int64 `[N]`, seconds, in any order.
    valid_fraction: share of all events for validation.
    test_fraction: share for test; the two sum to less than 1.

  Returns:
    int8 `[N]`: 0 train, 1 validation, 2 test.

  Raises:
    DataError: if so many events share a timestamp that no event is left for training.

  Example:
    >>> by_time(np.array([5, 1, 2, 3, 4]), valid_fraction=0.2, test_fraction=0.2).tolist()
    [2, 0, 0, 0, 1]
  """
  count = len(timestamp)
  num_test = int(count * test_fraction + 1e-9)
  num_valid = int(count * valid_fraction + 1e-9)
  part = np.zeros(count, np.int8)
  for size, value in ((num_test + num_valid, VALID), (num_test, TEST)):
    if size:
      cut = np.partition(timestamp, count - size)[count - size]
      part[timestamp >= cut] = value
  if count and not (part == TRAIN).any():
    raise DataError(
      f"split by time: no event lies before timestamp {timestamp.min()}, where validation would"
      " begin; use split='leave_one_out' or 'ratio', or smaller fractions"
    )
  return part
