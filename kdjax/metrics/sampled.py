"""SAMPLED ranking metrics: cheap, common in older papers, and not comparable with full ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.metrics import plan
from kdjax.metrics.ranks import Ranks
from kdjax.types import Array, FactoredLogits


def sampled_rank_targets(
  queries: Any,
  table: Any,
  seen_items: np.ndarray,
  seen_offsets: np.ndarray,
  target_items: np.ndarray,
  target_offsets: np.ndarray,
  *,
  key: Array,
  num_negatives: int = 100,
  bias: Any = None,
  targets_per_block: int = 1024,
) -> Ranks:
  """Ranks each target among SAMPLED negatives only: NOT COMPARABLE with whole-catalogue metrics.

  Against 100 negatives a model looks several times better than it is, and the order of two models
  can change. It exists to reproduce published figures; metrics made from its result are named
  `sampled100_ndcg@10`, so that no table can hide it. Use `catalog.rank_targets` for anything else.

  Negatives are uniform over the items that are neither seen nor targets of the user, drawn with
  replacement, anew for every target.

  Args:
    queries: float `[U, d]`, one a user.
    table: float `[V, d]`, or a pytree that has `rdot`, `take` and `shape` such as `QTensor`.
    seen_items: int `[S]`, items never drawn, user after user.
    seen_offsets: int `[U + 1]`.
    target_items: int `[T]`.
    target_offsets: int `[U + 1]`.
    key: PRNG key of the draws.
    num_negatives: how many a target.
    bias: float `[V]` or None.
    targets_per_block: how many targets are scored at once.

  Returns:
    `Ranks` with `num_negatives` set, and one row a (user, target) pair.

  Raises:
    ValueError: as `catalog.rank_targets`, or if a user has no item left to draw.

  Example:
    >>> import jax
    >>> table = np.array([[3.0], [2.0], [1.0]])
    >>> ranks = sampled_rank_targets(np.ones([1, 1]), table, np.array([0]), np.array([0, 1]),
    ...   np.array([2]), np.array([0, 1]), key=jax.random.key(0), num_negatives=5)
    >>> ranks.greater.tolist(), ranks.num_negatives  # every negative is item 1
    ([5], 5)

  Reference:
    Krichene and Rendle, On Sampled Metrics for Item Recommendation, KDD 2020.
  """
  num_items = table.shape[0]
  seen = plan.check_lists(seen_items, seen_offsets, num_items=num_items, name="seen")
  targets = plan.check_lists(target_items, target_offsets, num_items=num_items, name="target")
  if not len(seen_offsets) == len(target_offsets) == len(queries) + 1:
    raise ValueError("queries, seen_offsets and target_offsets must be of the same users")
  if num_negatives < 1:
    raise ValueError(f"num_negatives must be positive, got {num_negatives}")
  users, items = targets // num_items, targets % num_items
  excluded = np.union1d(seen, targets)
  negatives = _sample_unseen(users, excluded, num_items, num_negatives, key)
  candidates = np.concatenate([items[:, None], negatives], axis=1).astype(np.int32)

  table = table if hasattr(table, "rdot") else jnp.asarray(table)
  factors = FactoredLogits(jnp.asarray(queries), table, None if bias is None else jnp.asarray(bias))
  counts = [
    _count(factors, jnp.asarray(rows), jnp.asarray(ids))
    for rows, ids in _padded_blocks(users.astype(np.int32), candidates, targets_per_block)
  ]
  greater, tied = (
    np.concatenate([np.zeros(0, np.int32), *map(np.asarray, part)])[: len(targets)]
    for part in (zip(*counts, strict=True) if counts else ((), ()))
  )
  if np.any(bad := tied < 1):
    target = int(np.flatnonzero(bad)[0])
    raise ValueError(f"the score of item {items[target]} for user {users[target]} is NaN")
  return Ranks(
    users=users.astype(np.int32),
    offsets=np.arange(len(targets) + 1),
    items=items.astype(np.int32),
    greater=greater,
    tied=tied,
    num_negatives=num_negatives,
  )


def _sample_unseen(
  users: np.ndarray, excluded: np.ndarray, num_items: int, num_negatives: int, key: Array
) -> np.ndarray:
  """Uniform items outside the sorted keys `excluded`: int64 `[T, num_negatives]`.

  The r-th item that is not excluded is r + j, where j counts the excluded items s_0 < s_1 < ...
  with s_i - i <= r: one search, no rejection.
  """
  begin = np.searchsorted(excluded, users * num_items)
  counts = np.searchsorted(excluded, (users + 1) * num_items) - begin
  left = num_items - counts
  if np.any(left < 1):
    raise ValueError(f"user {users[np.argmin(left)]} has no unseen item to draw as a negative")
  shape = (len(users), num_negatives)
  draws = np.asarray(jax.random.randint(key, shape, 0, jnp.asarray(left, jnp.int32)[:, None]))
  owner = excluded // num_items
  shifted = excluded - (np.arange(len(excluded)) - np.searchsorted(owner, owner))
  wanted = users[:, None] * np.int64(num_items) + draws
  return draws + np.searchsorted(shifted, wanted, side="right") - begin[:, None]


def _padded_blocks(users: np.ndarray, candidates: np.ndarray, size: int):
  """Blocks of `size` rows, the last one filled up with its own first row."""
  for start in range(0, len(users), size):
    rows, ids = users[start : start + size], candidates[start : start + size]
    short = size - len(rows)
    yield np.pad(rows, (0, short), "edge"), np.pad(ids, ((0, short), (0, 0)), "edge")


@jax.jit
def _count(factors: FactoredLogits, rows: Array, ids: Array) -> tuple[Array, Array]:
  """Candidates above and at the first one, itself included: int32 `[B]` each."""
  with jax.default_matmul_precision("highest"):
    scores = factors._replace(query=factors.query[rows]).at(ids)
  target = scores[:, :1]
  return (
    jnp.sum(~(scores <= target), axis=1, dtype=jnp.int32),
    jnp.sum(scores == target, axis=1, dtype=jnp.int32),
  )
