"""Ragged lists of items laid out in blocks of users, on the host, without a loop over users.

A (user, item) pair is one int64 key, `user * num_items + item`: sorted keys are lists without
duplicates, in order, and set operations on them work for all users at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 1024  # Seen pairs removed at once.


class Blocks(NamedTuple):
  """Users in blocks of B, with the items to leave out for each.

  Attributes:
    order: int64 `[N]`, which of `users` stands at each place of `rows`, flattened.
    rows: int32 `[blocks, B]`, users; the last block is filled up with the first user.
    seen_rows: int32 `[chunks, CHUNK]`, column within the block, B where a chunk is not full.
    seen_items: int32 `[chunks, CHUNK]`.
    seen_start: int32 `[blocks + 1]`, the first chunk of every block.
    seen_counts: int32 `[blocks, B]`, how many items are left out for each user.
  """

  order: np.ndarray
  rows: np.ndarray
  seen_rows: np.ndarray
  seen_items: np.ndarray
  seen_start: np.ndarray
  seen_counts: np.ndarray


class Grid(NamedTuple):
  """Targets in lines of B: line l of a block holds the l-th target of each of its users.

  Attributes:
    items: int32 `[lines, B]`, 0 where a user has fewer targets.
    start: int32 `[blocks + 1]`, the first line of every block.
  """

  items: np.ndarray
  start: np.ndarray


def check_lists(items, offsets, *, num_items: int, name: str) -> np.ndarray:
  """Keys of the pairs, sorted and without duplicates: int64 `[S]`.

  Args:
    items: int `[S]`, item ids in `[0, num_items)`.
    offsets: int `[U + 1]`, not decreasing, from 0 to S.
    num_items: the size of the catalogue.
    name: what to call the lists in an error.

  Raises:
    ValueError: if the offsets do not fit the items, or an item is outside the catalogue.

  Example:
    >>> check_lists([2, 1, 1], [0, 1, 3], num_items=10, name="seen").tolist()
    [2, 11]
  """
  items, offsets = np.asarray(items), np.asarray(offsets)
  if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or np.any(np.diff(offsets) < 0):
    raise ValueError(f"{name}_offsets must be [U + 1], start at 0 and never decrease")
  if items.ndim != 1 or offsets[-1] != len(items):
    raise ValueError(f"{name}_offsets end at {offsets[-1]} but there are {items.shape} items")
  if len(items) and not (items.min() >= 0 and items.max() < num_items):
    raise ValueError(
      f"{name}_items must lie in [0, {num_items}), got {items.min()} to {items.max()}"
    )
  users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  keys = np.sort(users * np.int64(num_items) + items.astype(np.int64))
  return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def make_blocks(
  users: np.ndarray,
  seen: np.ndarray,
  *,
  num_items: int,
  size: int,
  weights: np.ndarray | None = None,
) -> Blocks:
  """Lays `users [N]` out in blocks of `size`, those of the largest `weights [N]` first.

  Args:
    users: int `[N]`, ascending.
    seen: int64 `[S]`, sorted keys; those of other users are ignored.
    num_items: the size of the catalogue.
    size: B, how many users a block holds.
    weights: int `[N]`, how many targets each user has, or None.

  Example:
    >>> blocks = make_blocks(np.arange(3), np.array([2, 11]), num_items=10, size=2)
    >>> blocks.rows.tolist(), blocks.seen_rows[:, :2].tolist(), blocks.seen_items[0, :2].tolist()
    ([[0, 1], [2, 0]], [[0, 1]], [2, 1])
  """
  order = np.arange(len(users)) if weights is None else np.argsort(-weights, kind="stable")
  num_blocks = -(-len(users) // size)
  rows = np.full(num_blocks * size, users[0], np.int32)
  rows[: len(users)] = users[order]

  begin = np.searchsorted(seen, rows.astype(np.int64) * num_items)
  counts = np.searchsorted(seen, (rows.astype(np.int64) + 1) * num_items) - begin
  counts[len(users) :] = 0
  per_block = counts.reshape(num_blocks, size).sum(axis=1)
  start = np.concatenate([[0], np.cumsum(-(-per_block // CHUNK))])

  # Each pair's slot: its block's first chunk, plus its place among the block's pairs.
  total = int(counts.sum())
  column = np.repeat(np.arange(len(rows)), counts)
  running = np.arange(total)
  pair = running - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(begin, counts)
  block = column // size
  slot = start[block] * CHUNK + running - (np.cumsum(per_block) - per_block)[block]
  chunks = max(int(start[-1]), 1)  # A traced program cannot index an empty array.
  seen_rows = np.full(chunks * CHUNK, size, np.int32)
  seen_items = np.zeros(chunks * CHUNK, np.int32)
  seen_rows[slot] = column % size
  seen_items[slot] = seen[pair] % num_items
  return Blocks(
    order=order,
    rows=rows.reshape(num_blocks, size),
    seen_rows=seen_rows.reshape(-1, CHUNK),
    seen_items=seen_items.reshape(-1, CHUNK),
    seen_start=start.astype(np.int32),
    seen_counts=counts.reshape(num_blocks, size).astype(np.int32),
  )


def make_grid(
  blocks: Blocks, items: np.ndarray, offsets: np.ndarray, *, size: int
) -> tuple[Grid, np.ndarray]:
  """Lays the targets of `blocks`' users out in lines.

  Args:
    blocks: from `make_blocks`, largest number of targets first.
    items: int32 `[T]`, targets user after user.
    offsets: int64 `[N + 1]`.
    size: B.

  Returns:
    The grid, and the cell of every target in it, flattened: int64 `[T]`.

  Example:
    >>> blocks = make_blocks(np.arange(2), np.zeros(0, int), num_items=9, size=2,
    ...                      weights=np.array([1, 2]))
    >>> grid, cells = make_grid(blocks, np.array([5, 6, 7]), np.array([0, 1, 3]), size=2)
    >>> grid.items.tolist(), cells.tolist()
    ([[6, 5], [7, 0]], [1, 0, 2])
  """
  counts = np.diff(offsets)
  lines = counts[blocks.order[::size]]  # The first user of a block has the most targets.
  start = np.concatenate([[0], np.cumsum(lines)])
  place = np.empty(len(counts), np.int64)
  place[blocks.order] = np.arange(len(counts))
  row = np.repeat(np.arange(len(counts)), counts)
  line = start[place[row] // size] + np.arange(len(items)) - offsets[row]
  cells = line * size + place[row] % size
  grid = np.zeros(start[-1] * size, np.int32)
  grid[cells] = items
  return Grid(grid.reshape(-1, size), start.astype(np.int32)), cells


def on_device(blocks: Blocks) -> Blocks:
  """The same, as JAX arrays; `order` stays behind."""
  return jax.tree.map(jnp.asarray, blocks._replace(order=np.zeros(0, np.int32)))
