"""The compiled half of `kdjax.metrics.catalog`: users in blocks, against all items.

Of a table that lies on a mesh every device ranks some of the blocks, against the items whose rows
it holds: what it tells others of is a few numbers a user, and neither rows nor scores.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from kdjax.mesh_table import ROWS, MeshTable, comes_by_columns, of_all, to_rows
from kdjax.metrics import plan
from kdjax.tree import vary_as
from kdjax.types import PAD, Array, FactoredLogits

Scorer = Callable[[Any, Array, Array], Array]  # (state, rows [B], ids [C]) -> scores [B, C].


class _Share(NamedTuple):
  """What one device ranks.

  Attributes:
    rows: the mesh axis that splits the items, or None.
    users: the mesh axes that split the blocks of users.
    parts: over how many devices they do.
  """

  rows: str | None = None
  users: tuple[str, ...] = ()
  parts: int = 1

  def first(self, num_items: int) -> Array | int:
    """The first item of a device that holds `num_items`."""
    return 0 if self.rows is None else lax.axis_index(self.rows) * num_items

  def blocks(self, count: int) -> tuple[Array, Array]:
    """Which of `count` blocks are this device's, and whether each is there at all.

    Every device takes one in turn, since the first blocks are those with the most targets.
    """
    index = jnp.arange(-(-count // self.parts)) * self.parts
    if self.users:
      index += lax.axis_index(self.users)
    return jnp.minimum(index, count - 1), index < count

  def over_items(self, x: Array) -> Array:
    """Sums over the devices that hold other items."""
    return x if self.rows is None else lax.psum(x, self.rows)

  def over_users(self, x: Any) -> Any:
    """Sums over the devices that rank other blocks."""
    return lax.psum(x, self.users) if self.users else x


@functools.partial(jax.jit, static_argnames=("scorer", "num_items", "items_per_block"))
def rank_blocks(
  state: Any,
  blocks: plan.Blocks,
  grid: plan.Grid,
  *,
  scorer: Scorer,
  num_items: int,
  items_per_block: int,
) -> tuple[Array, Array]:
  """Counts above and at every cell of the grid: two int32 `[G, B]`."""

  def rank(share: _Share, state: Any, blocks: plan.Blocks, grid: plan.Grid) -> Any:
    def rank_block(counts: tuple[Array, Array], own: tuple[Array, Array]) -> Any:
      index, there = own
      scores = _score_block(share, state, blocks, index, scorer, num_items, items_per_block)
      removed = blocks.seen_counts[index] + _missing(share, scores, num_items)

      def rank_line(line: Array, counts: tuple[Array, Array]) -> tuple[Array, Array]:
        target = _scores_of(share, scores, grid.items[line])
        # A NaN competitor counts as greater: a broken model must not rank well.
        greater = share.over_items(jnp.sum(~(scores <= target), axis=1, dtype=jnp.int32))
        tied = share.over_items(jnp.sum(scores == target, axis=1, dtype=jnp.int32))
        tied -= jnp.where(target[:, 0] == -jnp.inf, removed, 0)
        return counts[0].at[line].set(greater), counts[1].at[line].set(tied)

      start, stop = grid.start[index], grid.start[index + 1]
      return lax.fori_loop(start, jnp.where(there, stop, start), rank_line, counts), None

    own = share.blocks(len(blocks.rows))
    zeros = jnp.zeros(grid.items.shape, jnp.int32)
    counts, _ = lax.scan(rank_block, vary_as((zeros, zeros), own), own)
    return share.over_users(counts)  # Of lines that are another's there is 0.

  return _on_devices(rank, state, blocks, grid)


@functools.partial(jax.jit, static_argnames=("scorer", "num_items", "items_per_block", "k"))
def top_k_blocks(
  state: Any,
  blocks: plan.Blocks,
  *,
  scorer: Scorer,
  num_items: int,
  items_per_block: int,
  k: int,
) -> tuple[Array, Array]:
  """Ids and scores of the best: `[blocks, B, k]` each.

  On a mesh `[n, devices, B, k]`, in the same order when flattened; further blocks may follow.
  """

  def best(share: _Share, state: Any, blocks: plan.Blocks) -> tuple[Array, Array]:
    def of_block(index: Array) -> tuple[Array, Array]:
      scores = _score_block(share, state, blocks, index, scorer, num_items, items_per_block)
      values, ids = lax.top_k(scores, min(k, scores.shape[1]))
      if share.rows is not None:
        # Those of lower items stand first, so that of equal ones the lower id wins.
        ids += share.first(scores.shape[1])
        values, places = lax.top_k(of_all(values, share.rows), k)
        ids = jnp.take_along_axis(of_all(ids, share.rows), places, axis=1)
      return jnp.where(values == -jnp.inf, PAD, ids), values

    return lax.map(of_block, share.blocks(len(blocks.rows))[0])

  return _on_devices(best, state, blocks, in_turn=True)


def _on_devices(fn: Callable[..., Any], state: Any, *plans: Any, in_turn: bool = False) -> Any:
  """`fn(share, state, *plans)`, on every device of a mesh where the table lies on one.

  With `in_turn` it gives `[n, ...]` of a device's own blocks, beside which the others' are put.
  """
  table = getattr(state, "table", None)
  if not isinstance(table, MeshTable):
    return fn(_Share(), state, *plans)
  mesh, values = table.mesh, table.values
  devices = mesh.shape.get(ROWS, 1)
  users = tuple(name for name in mesh.axis_names if name != ROWS)
  share = _Share(
    ROWS if devices > 1 else None, users, math.prod(mesh.shape[name] for name in users)
  )
  missing, turns = -len(values) % devices, comes_by_columns(values, mesh)
  query, bias = state.query, state.bias
  if missing:
    values = values if turns else jnp.pad(values, [(0, missing), (0, 0)])
    bias = None if bias is None else jnp.pad(bias, [(0, 0), (0, missing)])

  def run(state: FactoredLogits, *plans: Any) -> Any:
    state = state._replace(table=to_rows(state.table, missing)) if turns else state
    found = fn(share, state, *plans)
    return jax.tree.map(lambda x: x[:, None], found) if in_turn else found

  none, columns = PartitionSpec(), PartitionSpec(None, share.rows)
  places: Any = (none, columns if turns else PartitionSpec(share.rows), columns)
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(FactoredLogits(*places), *[none] * len(plans)),
    out_specs=PartitionSpec(None, users) if in_turn else none,
  )(FactoredLogits(query, values, bias), *plans)


def _missing(share: _Share, scores: Array, num_items: int) -> int:
  """How many columns of all devices stand for no item; -inf, as what was seen."""
  devices = 1 if share.rows is None else lax.axis_size(share.rows)
  return scores.shape[1] * devices - num_items


def _scores_of(share: _Share, scores: Array, items: Array) -> Array:
  """Each user's score of one item `[B]`, which some device holds: float32 `[B, 1]`."""
  place = (items - share.first(scores.shape[1]))[:, None]
  if share.rows is None:
    return jnp.take_along_axis(scores, place, axis=1)
  held = (place >= 0) & (place < scores.shape[1])
  own = jnp.take_along_axis(scores, jnp.clip(place, 0, scores.shape[1] - 1), axis=1)
  return share.over_items(jnp.where(held, own, 0.0))


def _score_block(
  share: _Share,
  state: Any,
  block: plan.Blocks,
  index: Array,
  scorer: Scorer,
  num_items: int,
  items: int,
) -> Array:
  """Scores of one block of users, -inf where seen: float32 `[B, V]`, of a device's own items."""
  rows = block.rows[index]
  if share.rows is not None:
    own = state.table.shape[0]
    ids = share.first(own) + jnp.arange(own)
    scores = scorer(state, rows, ids).astype(jnp.float32)
    scores = jnp.where(ids[None, :] < num_items, scores, -jnp.inf)
  elif items >= num_items:
    scores = scorer(state, rows, jnp.arange(num_items)).astype(jnp.float32)
  else:
    # The last block of items is moved back into the catalogue: the overlap is written twice.
    starts = jnp.minimum(jnp.arange(0, num_items, items), num_items - items)

    def fill(scores: Array, start: Array) -> tuple[Array, None]:
      part = scorer(state, rows, start + jnp.arange(items)).astype(jnp.float32)
      return lax.dynamic_update_slice(scores, part, (jnp.int32(0), start)), None

    scores, _ = lax.scan(fill, jnp.zeros([len(rows), num_items], jnp.float32), starts)

  def remove(chunk: Array, scores: Array) -> Array:
    own = block.seen_items[chunk] - share.first(scores.shape[1])
    own = jnp.where(own < 0, scores.shape[1], own)  # Below 0 a scatter counts from the end.
    return scores.at[block.seen_rows[chunk], own].set(-jnp.inf, mode="drop")

  return lax.fori_loop(block.seen_start[index], block.seen_start[index + 1], remove, scores)
