"""Ranking every user against the whole catalogue, in blocks: never users times items at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.mesh_table import ROWS, MeshTable
from kdjax.metrics import plan
from kdjax.metrics.catalog_blocks import Scorer, rank_blocks, top_k_blocks
from kdjax.metrics.ranks import Ranks
from kdjax.tree import to_host
from kdjax.types import Array, FactoredLogits


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
    table: float `[V, d]`, or a pytree that has `rdot` and `shape` such as `QTensor`. Of a
      `kdjax.mesh_table.MeshTable` every device ranks some of the users against the rows it holds.
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

  block = users_per_block or default_block(_items_of_a_device(state, num_items))
  blocks = plan.make_blocks(users, seen, num_items=num_items, size=block, weights=counts)
  grid, cells = plan.make_grid(blocks, items, offsets, size=block)
  greater, tied = to_host(
    rank_blocks(
      state,
      plan.on_device(blocks),
      jax.tree.map(jnp.asarray, grid),
      scorer=scorer,
      num_items=num_items,
      items_per_block=min(items_per_block or num_items, num_items),
    )
  )
  ranks = Ranks(
    users=users.astype(np.int32),
    offsets=offsets,
    items=items,
    greater=greater.reshape(-1)[cells],
    tied=tied.reshape(-1)[cells],
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
    table: as in `rank_targets`.
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
  block = users_per_block or default_block(_items_of_a_device(state, num_items))
  blocks = plan.make_blocks(users, seen, num_items=num_items, size=block)
  found = to_host(
    top_k_blocks(
      state,
      plan.on_device(blocks),
      scorer=scorer,
      num_items=num_items,
      items_per_block=min(items_per_block or num_items, num_items),
      k=k,
    )
  )
  place = np.argsort(blocks.order)
  return TopK(*(x.reshape(-1, k)[: len(users)][place] for x in found))


def default_block(num_items: int) -> int:
  """Users a block: about 2**20 scores, what a core's cache holds, within [8, 256].

  At least 8, because a product with a single row may round a catalogue's last rows differently.
  """
  return int(np.clip(2 ** round(np.log2(2**20 / num_items)), 8, 256))


def _items_of_a_device(state: Any, num_items: int) -> int:
  table = getattr(state, "table", None)
  return -(-num_items // (table.mesh.shape.get(ROWS, 1) if isinstance(table, MeshTable) else 1))


def _factors(queries: Any, table: Any, bias: Any, offsets: np.ndarray) -> FactoredLogits:
  queries = jnp.asarray(queries)
  table = table if hasattr(table, "rdot") or isinstance(table, MeshTable) else jnp.asarray(table)
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
