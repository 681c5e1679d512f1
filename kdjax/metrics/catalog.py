"""Ranking every user against the whole catalogue, in blocks: never users times items at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax.metrics import plan
from kdjax.metrics.ranks import Ranks
from kdjax.types import PAD, Array, FactoredLogits

Scorer = Callable[[Any, Array, Array], Array]  # (state, rows [B], ids [C]) -> scores [B, C].


class TopK(NamedTuple):
  """The best items of every user, best first.

  Attributes:
    ids: int32 `[U, k]`, PAD where a user has fewer than k unseen items.
    scores: float32 `[U, k]`, -inf where `ids` is PAD.
  """

  ids: np.ndarray
  scores: np.ndarray


def rank_targets(
  queries: Any,
  table: Any,
  seen_items: np.ndarray,
  seen_offsets: np.ndarray,
  target_items: np.ndarray,
  target_offsets: np.ndarray,
  *,
  bias: Any = None,
  users_per_block: int | None = None,
) -> Ranks:
  r"""Ranks each user's targets among all items the user has not seen.

  $$g_t = |\{i \notin \text{seen} : s_i > s_t\}|, \qquad e_t = |\{i \notin \text{seen} : s_i =
  s_t\}|, \qquad s = q_u \cdot \text{table}^\top + \text{bias}$$

  Targets always take part, as is standard: a target that the user has also seen is ranked, and
  counts against the user's other targets. An item listed twice counts once.

  Target and competitors are scored by one and the same product, so that equal rows tie exactly.
  The products are float32 (a `QTensor` table multiplies as it is served).

  Args:
    queries: float `[U, d]`, one a user.
    table: float `[V, d]`, or a pytree that has `rdot` and `shape` such as `QTensor`.
    seen_items: int `[S]`, items to leave out, user after user.
    seen_offsets: int `[U + 1]`; user u has seen `seen_items[seen_offsets[u]:seen_offsets[u + 1]]`.
    target_items: int `[T]`, the items to find; a user may have none.
    target_offsets: int `[U + 1]`.
    bias: float `[V]` or None.
    users_per_block: how many users are scored at once; None for as many as keep a block in cache.

  Returns:
    `Ranks`, of the users with a target, in the order of the users; items ascend within a user.

  Raises:
    ValueError: if the offsets do not fit the users or the items, an item is outside `[0, V)`, or
      a target's score is NaN.

  Example:
    >>> import numpy as np
    >>> ranks = rank_targets(np.ones([1, 1]), np.array([[3.0], [2.0], [1.0], [1.0]]),
    ...                      np.array([0]), np.array([0, 1]), np.array([2]), np.array([0, 1]))
    >>> ranks.greater.tolist(), ranks.tied.tolist()  # 0 is seen, 1 scores higher, 3 the same
    ([1], [2])
  """
  state = _factors(queries, table, bias, seen_offsets)
  return rank_targets_with(
    _score_factored,
    state,
    seen_items,
    seen_offsets,
    target_items,
    target_offsets,
    num_items=table.shape[0],
    users_per_block=users_per_block,
  )


def rank_targets_with(
  scorer: Scorer,
  state: Any,
  seen_items: np.ndarray,
  seen_offsets: np.ndarray,
  target_items: np.ndarray,
  target_offsets: np.ndarray,
  *,
  num_items: int,
  users_per_block: int | None = None,
  items_per_block: int | None = None,
) -> Ranks:
  """`rank_targets` for a model whose scores do not factor.

  `scorer(state, rows, ids)` is compiled once a scorer, so pass the same function every time.

  Args:
    scorer: pure function `(state, rows int32 [B], ids int32 [C]) -> scores float [B, C]`.
    state: pytree of whatever the scorer needs, such as params and the users' features.
    seen_items: int `[S]`, items to leave out, user after user.
    seen_offsets: int `[U + 1]`.
    target_items: int `[T]`, the items to find.
    target_offsets: int `[U + 1]`.
    num_items: V, the size of the catalogue.
    users_per_block: how many users are scored at once; None for as many as keep a block in cache.
    items_per_block: how many items the scorer sees at once; None for all.

  Returns:
    `Ranks`, as `rank_targets`.

  Raises:
    ValueError: as `rank_targets`.

  Example:
    >>> import numpy as np
    >>> def prefer_low_ids(state, rows, ids):
    ...   return state[rows][:, None] - ids[None, :]
    >>> none = np.zeros(0, int), np.zeros(2, int)
    >>> target = np.array([3]), np.array([0, 1])
    >>> rank_targets_with(prefer_low_ids, np.zeros(1), *none, *target, num_items=9).greater.item()
    3
  """
  seen = plan.check_lists(seen_items, seen_offsets, num_items=num_items, name="seen")
  targets = plan.check_lists(target_items, target_offsets, num_items=num_items, name="target")
  if len(seen_offsets) != len(target_offsets):
    raise ValueError(
      f"seen_offsets are of {len(seen_offsets) - 1} users, target_offsets of "
      f"{len(target_offsets) - 1}"
    )
  seen = np.setdiff1d(seen, targets, assume_unique=True)
  users, counts = np.unique(targets // num_items, return_counts=True)
  items = (targets % num_items).astype(np.int32)
  offsets = np.concatenate([[0], np.cumsum(counts)])
  if len(users) == 0:
    empty = np.zeros(0, np.int32)
    return Ranks(empty, offsets, empty, empty, empty)

  block = users_per_block or default_block(num_items)
  blocks = plan.make_blocks(users, seen, num_items=num_items, size=block, weights=counts)
  grid, cells = plan.make_grid(blocks, items, offsets, size=block)
  greater, tied = _rank_blocks(
    state,
    plan.on_device(blocks),
    jax.tree.map(jnp.asarray, grid),
    scorer=scorer,
    num_items=num_items,
    items_per_block=min(items_per_block or num_items, num_items),
  )
  ranks = Ranks(
    users=users.astype(np.int32),
    offsets=offsets,
    items=items,
    greater=np.asarray(greater).reshape(-1)[cells],
    tied=np.asarray(tied).reshape(-1)[cells],
  )
  if np.any(bad := ranks.tied < 1):
    target = int(np.flatnonzero(bad)[0])
    user = int(users[np.searchsorted(offsets, target, side="right") - 1])
    raise ValueError(f"the score of item {items[target]} for user {user} is NaN")
  return ranks


def top_k(
  queries: Any,
  table: Any,
  seen_items: np.ndarray,
  seen_offsets: np.ndarray,
  *,
  k: int = 10,
  bias: Any = None,
  users_per_block: int | None = None,
) -> TopK:
  """The k best unseen items of every user; of tied items the lower id comes first.

  Args:
    queries: float `[U, d]`, one a user.
    table: float `[V, d]`, or a pytree that has `rdot` and `shape` such as `QTensor`.
    seen_items: int `[S]`, items to leave out, user after user.
    seen_offsets: int `[U + 1]`.
    k: how many; at most V.
    bias: float `[V]` or None.
    users_per_block: how many users are scored at once; None for as many as keep a block in cache.

  Returns:
    `TopK(ids int32 [U, k], scores float32 [U, k])`.

  Raises:
    ValueError: if the offsets do not fit the users or the items, an item is outside `[0, V)`, or
      k is outside `[1, V]`.

  Example:
    >>> import numpy as np
    >>> best = top_k(np.ones([1, 1]), np.array([[3.0], [2.0], [1.0]]),
    ...              np.array([0]), np.array([0, 1]), k=3)
    >>> best.ids.tolist()
    [[1, 2, -1]]
  """
  return top_k_with(
    _score_factored,
    _factors(queries, table, bias, seen_offsets),
    seen_items,
    seen_offsets,
    num_items=table.shape[0],
    k=k,
    users_per_block=users_per_block,
  )


def top_k_with(
  scorer: Scorer,
  state: Any,
  seen_items: np.ndarray,
  seen_offsets: np.ndarray,
  *,
  num_items: int,
  k: int = 10,
  users_per_block: int | None = None,
  items_per_block: int | None = None,
) -> TopK:
  """`top_k` for a model whose scores do not factor.

  Args:
    scorer: pure function `(state, rows int32 [B], ids int32 [C]) -> scores float [B, C]`.
    state: pytree of whatever the scorer needs.
    seen_items: int `[S]`, items to leave out, user after user.
    seen_offsets: int `[U + 1]`.
    num_items: V, the size of the catalogue.
    k: how many; at most V.
    users_per_block: how many users are scored at once; None for as many as keep a block in cache.
    items_per_block: how many items the scorer sees at once; None for all.

  Returns:
    `TopK(ids int32 [U, k], scores float32 [U, k])`.

  Raises:
    ValueError: as `top_k`.

  Example:
    >>> import numpy as np
    >>> def prefer_low_ids(state, rows, ids):
    ...   return state[rows][:, None] - ids[None, :]
    >>> seen = np.array([0]), np.array([0, 1])
    >>> top_k_with(prefer_low_ids, np.zeros(1), *seen, num_items=9, k=2).ids.tolist()
    [[1, 2]]
  """
  if not 1 <= k <= num_items:
    raise ValueError(f"k must lie in [1, {num_items}], got {k}")
  seen = plan.check_lists(seen_items, seen_offsets, num_items=num_items, name="seen")
  users = np.arange(len(seen_offsets) - 1)
  if len(users) == 0:
    return TopK(np.zeros([0, k], np.int32), np.zeros([0, k], np.float32))
  block = users_per_block or default_block(num_items)
  blocks = plan.make_blocks(users, seen, num_items=num_items, size=block)
  ids, scores = _top_k_blocks(
    state,
    plan.on_device(blocks),
    scorer=scorer,
    num_items=num_items,
    items_per_block=min(items_per_block or num_items, num_items),
    k=k,
  )
  place = np.argsort(blocks.order)
  return TopK(*(np.asarray(x).reshape(-1, k)[: len(users)][place] for x in (ids, scores)))


def default_block(num_items: int) -> int:
  """Users a block: about 2**20 scores, what a core's cache holds, within [8, 256].

  At least 8, because a product with a single row may round a catalogue's last rows differently.
  """
  return int(np.clip(2 ** round(np.log2(2**20 / num_items)), 8, 256))


def _factors(queries: Any, table: Any, bias: Any, offsets: np.ndarray) -> FactoredLogits:
  queries = jnp.asarray(queries)
  table = table if hasattr(table, "rdot") else jnp.asarray(table)
  if queries.ndim != 2 or queries.shape[1] != table.shape[1]:
    raise ValueError(f"queries {queries.shape} do not fit a table of {tuple(table.shape)}")
  if len(offsets) != len(queries) + 1:
    raise ValueError(
      f"the lists are of {len(offsets) - 1} users but there are {len(queries)} queries"
    )
  # The bias has an axis for the users: ranks are never promoted silently.
  return FactoredLogits(queries, table, None if bias is None else jnp.asarray(bias)[None, :])


def _score_factored(state: FactoredLogits, rows: Array, ids: Array) -> Array:
  """Scores of the whole catalogue at once: `ids` are all of it."""
  del ids
  with jax.default_matmul_precision("highest"):
    return state._replace(query=state.query[rows]).dense()


def _score_block(
  state: Any, block: plan.Blocks, index: Array, scorer: Scorer, num_items: int, items: int
) -> Array:
  """Scores of one block of users, -inf where seen: float32 `[B, V]`."""
  rows = block.rows[index]
  if items >= num_items:
    scores = scorer(state, rows, jnp.arange(num_items)).astype(jnp.float32)
  else:
    # The last block of items is moved back into the catalogue: the overlap is written twice.
    starts = jnp.minimum(jnp.arange(0, num_items, items), num_items - items)

    def fill(scores: Array, start: Array) -> tuple[Array, None]:
      part = scorer(state, rows, start + jnp.arange(items)).astype(jnp.float32)
      return lax.dynamic_update_slice(scores, part, (jnp.int32(0), start)), None

    scores, _ = lax.scan(fill, jnp.zeros([len(rows), num_items], jnp.float32), starts)

  def remove(chunk: Array, scores: Array) -> Array:
    at = block.seen_rows[chunk], block.seen_items[chunk]
    return scores.at[at].set(-jnp.inf, mode="drop")

  return lax.fori_loop(block.seen_start[index], block.seen_start[index + 1], remove, scores)


@functools.partial(jax.jit, static_argnames=("scorer", "num_items", "items_per_block"))
def _rank_blocks(
  state: Any,
  blocks: plan.Blocks,
  grid: plan.Grid,
  *,
  scorer: Scorer,
  num_items: int,
  items_per_block: int,
) -> tuple[Array, Array]:
  """Counts above and at every cell of the grid: two int32 `[G, B]`."""

  def rank_block(counts: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
    scores = _score_block(state, blocks, index, scorer, num_items, items_per_block)
    removed = blocks.seen_counts[index]

    def rank_line(line: Array, counts: tuple[Array, Array]) -> tuple[Array, Array]:
      target = jnp.take_along_axis(scores, grid.items[line][:, None], axis=1)
      # A NaN competitor counts as greater: a broken model must not rank well.
      greater = jnp.sum(~(scores <= target), axis=1, dtype=jnp.int32)
      tied = jnp.sum(scores == target, axis=1, dtype=jnp.int32)
      tied -= jnp.where(target[:, 0] == -jnp.inf, removed, 0)
      return counts[0].at[line].set(greater), counts[1].at[line].set(tied)

    return lax.fori_loop(grid.start[index], grid.start[index + 1], rank_line, counts), None

  zeros = jnp.zeros(grid.items.shape, jnp.int32)
  counts, _ = lax.scan(rank_block, (zeros, zeros), jnp.arange(len(blocks.rows)))
  return counts


@functools.partial(jax.jit, static_argnames=("scorer", "num_items", "items_per_block", "k"))
def _top_k_blocks(
  state: Any,
  blocks: plan.Blocks,
  *,
  scorer: Scorer,
  num_items: int,
  items_per_block: int,
  k: int,
) -> tuple[Array, Array]:
  """Ids and scores of the best: `[blocks, B, k]` each."""

  def best(index: Array) -> tuple[Array, Array]:
    scores = _score_block(state, blocks, index, scorer, num_items, items_per_block)
    values, ids = lax.top_k(scores, k)
    return jnp.where(values == -jnp.inf, PAD, ids), values

  return lax.map(best, jnp.arange(len(blocks.rows)))
