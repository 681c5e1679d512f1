"""From the ranks of the targets to one value a user of every ranking metric, on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NOT_FOUND = 2**30  # More than any list holds.


class Ranks(NamedTuple):
  """Where the targets of some users stand in their rankings; target t of row n lies at
  `offsets[n] <= t < offsets[n + 1]`.

  Attributes:
    users: int32 `[N]`, the user of every row; only users with a target have one.
    offsets: int64 `[N + 1]`.
    items: int32 `[T]`, the targets.
    greater: int32 `[T]`, how many candidates score strictly higher.
    tied: int32 `[T]`, how many score the same, the target itself included: 1 without a tie.
    num_negatives: 0 when the whole catalogue was ranked, else how many sampled items were.
  """

  users: np.ndarray
  offsets: np.ndarray
  items: np.ndarray
  greater: np.ndarray
  tied: np.ndarray
  num_negatives: int = 0


def per_user(
  ranks: Ranks, *, ks: Sequence[int] = (1, 5, 10, 20), gains: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  r"""Every ranking metric at every k, one value a row of `ranks`.

  Each is the expected value under a random order of tied items, as in `kdjax.metrics.ranking`.
  A target with g items above it and e at its score has rank g + 1, ..., g + e with equal
  probability, so that with n = clip(k - g, 0, e)

  $$\mathrm{recall} = \frac1R \sum_t \frac{n_t}{e_t} \qquad
  \mathrm{hr} = 1 - \prod_t \frac{\max(e_t - n_t - j_t, 0)}{e_t - j_t}$$

  where $j_t$ targets of the same score come before t; and likewise, over sums of discounts and
  of reciprocals, for ndcg, mrr and map (divided by R, all targets of the user).

  Args:
    ranks: from `rank_targets` or one of its siblings.
    ks: how many ranks count.
    gains: float `[T]`, above 0, how relevant each of `ranks.items` is, for ndcg; 1 by default.

  Returns:
    float64 `[N]` by name: `hr@10`, `recall@10`, `precision@10`, `ndcg@10`, `mrr@10`, `map@10`,
    ...; names begin with `sampled100_` when 100 sampled negatives were ranked.

  Raises:
    ValueError: if a k is not positive, or the gains are not one positive number a target.

  Example:
    >>> ranks = Ranks(*map(np.array, ([7], [0, 1], [42], [1], [1])))  # one item above the target
    >>> {name: round(float(value[0]), 4) for name, value in per_user(ranks, ks=[5]).items()}
    {'hr@5': 1.0, 'recall@5': 1.0, 'precision@5': 0.2, 'ndcg@5': 0.6309, 'mrr@5': 0.5, 'map@5': 0.5}

  Reference:
    McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the
    Presence of Tied Scores, ECIR 2008.
  """
  if any(k < 1 for k in ks):
    raise ValueError(f"every k must be positive, got {tuple(ks)}")
  gains = np.ones(len(ranks.items)) if gains is None else np.asarray(gains, np.float64)
  if gains.shape != ranks.items.shape or not (gains > 0).all():
    raise ValueError(f"gains {gains.shape} must be positive, one of each of {ranks.items.shape}")
  prefix = f"sampled{ranks.num_negatives}_" if ranks.num_negatives else ""
  found = {}
  for k in ks:
    for name, values in _metrics_at(ranks, int(k), gains).items():
      found[f"{prefix}{name}@{k}"] = values
  return found


def rank_lists(
  scores: np.ndarray,
  ids: np.ndarray,
  target_items: np.ndarray,
  target_offsets: np.ndarray,
) -> Ranks:
  """Where targets stand in lists of some candidates each: a first stage's best, or BM25's.

  A target that is not on its list is not found: it stands behind `NOT_FOUND` others.

  Args:
    scores: float `[U, C]` of the candidates; -inf where there is none.
    ids: int `[U, C]`, which items they are, none twice in a list.
    target_items: int `[T]`, the items to find; a user may have none.
    target_offsets: int `[U + 1]`.

  Returns:
    `Ranks`, of the users with a target, in the order of the users; items ascend within a user.

  Raises:
    ValueError: if the shapes or the offsets do not fit, or a score is NaN.

  Example:
    >>> found = rank_lists(np.array([[0.5, 0.9, 0.5]]), np.array([[7, 3, 4]]),
    ...                    np.array([4, 8]), np.array([0, 2]))
    >>> found.greater.tolist() == [1, NOT_FOUND], found.tied.tolist()
    (True, [2, 1])
  """
  scores, ids, offsets = np.asarray(scores), np.asarray(ids), np.asarray(target_offsets)
  if scores.shape != ids.shape or scores.ndim != 2 or len(offsets) != len(scores) + 1:
    raise ValueError(f"scores {scores.shape}, ids {ids.shape}, offsets {offsets.shape} do not fit")
  if offsets[-1] != len(target_items) or np.isnan(scores).any():
    raise ValueError(f"offsets end at {offsets[-1]} of {len(target_items)} targets, or NaN scores")
  row = np.repeat(np.arange(len(scores)), np.diff(offsets))
  items = np.asarray(target_items)[np.lexsort((target_items, row))].astype(np.int32)
  greater = np.full(len(items), NOT_FOUND, np.int32)
  tied = np.ones(len(items), np.int32)
  for first in range(0, len(items), 1024):
    some = slice(first, first + 1024)
    own = scores[row[some]]
    at = (ids[row[some]] == items[some, None]) & (own > -np.inf)
    there, score = at.any(axis=1), np.max(np.where(at, own, -np.inf), axis=1)[:, None]
    greater[some] = np.where(there, (own > score).sum(axis=1), NOT_FOUND)
    tied[some] = np.where(there, (own == score).sum(axis=1), 1)
  lost = greater == NOT_FOUND
  tied[lost] = np.bincount(row[lost], minlength=len(scores))[row[lost]]
  users = np.flatnonzero(np.diff(offsets)).astype(np.int32)
  return Ranks(users, offsets[np.append(users, len(scores))], items, greater, tied)


def summarize(ranks: Ranks, *, ks: Sequence[int] = (1, 5, 10, 20)) -> dict[str, float]:
  """Mean over users of every metric of `per_user`.

  Args:
    ranks: from `rank_targets` or one of its siblings.
    ks: how many ranks count.

  Returns:
    float by name, such as `ndcg@10`; `sampled100_ndcg@10` for sampled negatives.

  Raises:
    ValueError: if a k is not positive, or no user has a target.

  Example:
    >>> ranks = Ranks(*map(np.array, ([0, 1], [0, 1, 2], [5, 6], [0, 9], [1, 1])))
    >>> summarize(ranks, ks=[5])["hr@5"]
    0.5
  """
  if len(ranks.users) == 0:
    raise ValueError("no user has a target: there is nothing to average")
  return {name: float(values.mean()) for name, values in per_user(ranks, ks=ks).items()}


def _metrics_at(ranks: Ranks, k: int, gains: np.ndarray) -> dict[str, np.ndarray]:
  counts = np.diff(ranks.offsets)
  names = ("hr", "recall", "precision", "ndcg", "mrr", "map")
  if len(counts) == 0:
    return {name: np.zeros(0) for name in names}
  first = ranks.offsets[:-1]
  row = np.repeat(np.arange(len(counts)), counts)
  order = np.lexsort((ranks.greater, row))
  greater = ranks.greater[order].astype(np.int64)
  tied = ranks.tied[order].astype(np.int64)

  # Targets of a row with as many items above them have the same score: a group of m ties.
  is_start = np.ones(len(row), bool)
  is_start[1:] = (row[1:] != row[:-1]) | (greater[1:] != greater[:-1])
  starts = np.flatnonzero(is_start)
  group = np.cumsum(is_start) - 1
  hits = np.diff(np.append(starts, len(row)))[group]  # m
  place = np.arange(len(row)) - starts[group]  # j
  above = starts[group] - first[row]  # Targets in better groups.

  discounts = _running_sum(1.0 / np.log2(np.arange(2, k + 2)))
  reciprocals = _running_sum(1.0 / np.arange(1, k + 1))
  low, high = np.minimum(greater, k), np.minimum(greater + tied, k)
  reached = high - low  # n
  share = reached / tied
  missed = np.maximum(tied - reached - place, 0) / (tied - place)
  inverse = reciprocals[high] - reciprocals[low]
  others = (hits - 1) / np.maximum(tied - 1, 1)
  precision = ((1 + above) * inverse + others * (reached - (greater + 1) * inverse)) / tied
  gain = gains[order] * (discounts[high] - discounts[low]) / tied
  # In the ideal order the greatest gain comes first.
  greatest = gains[np.lexsort((-gains, row))]
  rank = np.minimum(np.arange(len(row)) - first[row], k)
  ideal = greatest * (discounts[np.minimum(rank + 1, k)] - discounts[rank])

  def add(values: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, first)

  values = (
    1.0 - np.multiply.reduceat(missed, first),
    add(share) / counts,
    add(share) / k,
    add(gain) / add(ideal),
    _reciprocal_rank(greater[first], tied[first], hits[first], k),
    add(precision) / counts,
  )
  return dict(zip(names, values, strict=True))


def _reciprocal_rank(greater, tied, hits, k: int) -> np.ndarray:
  """Expected 1 / rank, 0 beyond k, of the first of `hits` targets among `tied` items."""
  value = np.zeros(len(greater))
  survives = np.ones(len(greater))
  live = np.arange(len(greater))
  for place in range(1, k + 1):
    # Rows leave once k is passed or the targets must have come; without ties that is at once.
    live = live[(greater[live] + place <= k) & (place <= tied[live] - hits[live] + 1)]
    if len(live) == 0:
      break
    hit = hits[live] / (tied[live] - place + 1)
    value[live] += survives[live] * hit / (greater[live] + place)
    survives[live] *= 1.0 - hit
  return value


def _running_sum(values: np.ndarray) -> np.ndarray:
  return np.concatenate([[0.0], np.cumsum(values)])
