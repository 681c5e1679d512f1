"""Tables by the rows that a batch reads: what stands in a table's place, and the way back into it.

A step over a table of millions of rows reads a few thousands of them. `unique_ids` lists those once
each, `gather_rows` takes them out of the params, `stand_in` puts them where the tables stood while
the model runs (so that gradients are those of a few rows), and `put_rows` writes them back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Array, Params, Path

Ids = Mapping[Path, Array]  # Of every table that is read by rows: int32 ids of its rows.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GatheredRows:
  """Some rows of a table, standing in its place: a `kdjax.types.Table` that knows no others.

  Attributes:
    ids: int32 `[n]`, rising, as `unique_ids` gives them.
    values: float `[n, ...]`, the row of each id.
    num_rows: of the whole table.

  Example:
    >>> rows = GatheredRows(jnp.array([2, 7, 9]), jnp.array([[1.0], [2.0], [0.0]]), 9)
    >>> rows.shape, rows.take(jnp.array([7, 2, 7])).tolist()
    ((9, 1), [[2.0], [1.0], [2.0]])
  """

  ids: Array
  values: Array
  num_rows: int = dataclasses.field(metadata={"static": True})

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the whole table."""
    return (self.num_rows, *self.values.shape[1:])

  @property
  def ndim(self) -> int:
    """Of the whole table."""
    return self.values.ndim

  @property
  def dtype(self) -> jnp.dtype:
    """Of the rows."""
    return self.values.dtype

  def take(self, ids: Array) -> Array:
    """Rows at `ids` int `[...]`: `[..., d]`; NaN, which shows, for one that is not here."""
    place = jnp.clip(jnp.searchsorted(self.ids, ids), 0, self.ids.shape[0] - 1)
    there = jnp.where(self.ids[place] == ids, 1.0, jnp.nan).astype(self.dtype)
    return self.values[place] * there.reshape(there.shape + (1,) * (self.ndim - 1))

  def __getitem__(self, ids: Array) -> Array:
    return self.take(ids)

  def replace(self, values: Array) -> "GatheredRows":
    """Other values `[n, ...]` for the same rows."""
    return dataclasses.replace(self, values=values)

  def astype(self, dtype: Any) -> "GatheredRows":
    """The rows in another type."""
    return self.replace(self.values.astype(dtype))

  def rdot(self, query: Array) -> Array:
    """Refuses: a product with the whole table reads rows that are not here."""
    raise ValueError(
      f"a product of {jnp.shape(query)} with all {self.num_rows} rows of a table of which a step "
      f"reads {self.ids.shape[0]} by rows; use a sampled loss, or dense updates of the table"
    )

  def __jax_array__(self) -> Array:
    return self.rdot(self.values)


def unique_ids(ids: Array, num_rows: int) -> Array:
  """The rows that `ids` name, once each and rising; what is left over lies past the table.

  Args:
    ids: int `[...]` below `num_rows`; negative ones (PAD, MASK) count as 0, since models read that
      row there and leave it out of what they compute.
    num_rows: V, rows of the table.

  Returns:
    int32 `[n]` with n the lesser of V and the size of `ids`: rising and without duplicates, those
    that are left over V or more, where scatters drop them.

  Example:
    >>> unique_ids(jnp.array([[5, 1], [2, 5]]), 9).tolist()
    [1, 2, 5, 12]
  """
  flat = jnp.maximum(ids, 0).astype(jnp.int32).reshape(-1)
  count = flat.shape[0]
  # Two sorts of keys alone: several times faster than jnp.unique, which counts and scatters.
  found = jnp.sort(flat)
  again = jnp.concatenate([jnp.zeros(1, bool), found[1:] == found[:-1]])
  found = jnp.where(again, num_rows + jax.lax.iota(jnp.int32, count), found)
  return jnp.sort(found)[: min(count, num_rows)]


def take_at(table: Array, ids: Array) -> Array:
  """Rows at ids of `unique_ids`; those past the table are any row."""
  return table.at[ids].get(mode="clip", indices_are_sorted=True)


def put_at(table: Array, ids: Array, values: Array) -> Array:
  """The table with other rows at ids of `unique_ids`; those past it are dropped."""
  return table.at[ids].set(values, mode="drop", indices_are_sorted=True, unique_indices=True)


def gather_rows(params: Params, ids: Ids) -> Params:
  """The params with rows `[n, ...]` in place of each table `[V, ...]` that `ids` names.

  Raises:
    ValueError: if `ids` names a path that is no leaf.
  """
  if missing := [path for path in ids if path not in dict(leaves_with_path(params))]:
    raise ValueError(f"no table at {', '.join('/'.join(path) for path in missing)}")
  return map_with_path(lambda path, x: take_at(x, ids[path]) if path in ids else x, params)


def stand_in(gathered: Params, params: Params, ids: Ids) -> Params:
  """What a model is run on: `GatheredRows` where `params` have a table."""

  def place(path: Path, rows: Array, table: Array) -> Any:
    return GatheredRows(ids[path], rows, table.shape[0]) if path in ids else rows

  return map_with_path(place, gathered, params)


def put_rows(params: Params, gathered: Params, ids: Ids) -> Params:
  """The params with what became of their rows, and of all that is no table, written into them."""
  return map_with_path(
    lambda path, x, new: put_at(x, ids[path], new) if path in ids else new, params, gathered
  )
