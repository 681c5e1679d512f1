"""Sweeps over catalogues that lie on a mesh: each device sweeps over its rows for its tokens.

Left to the compiler, a loop over blocks of a table that is split by rows gathers the whole table on
every device, and sums the table's gradient over devices once a block. Here the loop runs inside
`jax.shard_map`: rows stay where they are, and gradients are summed once. Where the devices do not
divide the rows, impossible items fill the catalogue up, and a table that came split by columns is
turned here: not every compiler finds that way without gathering it. Columns that an axis splits are
gathered on the way in, so that their gradients are scattered on the way back, and not summed whole.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax.losses.common import FLOOR
from kdjax.mesh_table import COLUMNS, ROWS, comes_by_columns, to_rows
from kdjax.tree import vary_as
from kdjax.types import FactoredLogits


def on_every_device(
  fn: Callable[[str | None, FactoredLogits, Any], Any],
  student: FactoredLogits,
  given: Any,
  *,
  by_token: bool,
) -> Any:
  """Runs a sweep on the devices of the student's table, each with its rows and its tokens.

  Args:
    fn: `(axis, student, given) -> tree`, where `axis` is the mesh axis that splits the rows, or
      None; the student's table is an array.
    student: flat queries `[T, d]` and a `MeshTable`.
    given: a tree of `[T, ...]`, of logits `[T, V]` in factors, and of numbers that tokens share.
    by_token: whether `fn` gives `[T]` of its tokens; otherwise sums over them, which are added up.

  Returns:
    What `fn` gives of all tokens and all rows.
  """
  mesh, num_tokens = student.table.mesh, len(student.query)
  args = (student._replace(table=student.table.values), given)
  devices = mesh.shape.get(ROWS, 1)
  missing = -student.num_items % devices
  num_items = student.num_items + missing
  split = mesh.shape.get(COLUMNS, 1)
  turned = jax.tree.map(
    lambda x: _is_logits(x) and comes_by_columns(x.table, mesh), args, is_leaf=_is_logits
  )
  if missing:
    args = jax.tree.map(lambda turns, x: _fill_up(x, missing, turns), turned, args)
  batch = tuple(name for name in mesh.axis_names if name != ROWS)
  parts = math.prod(mesh.shape[name] for name in batch)
  divides = num_tokens % parts == 0
  tokens = PartitionSpec(batch) if divides else PartitionSpec()
  axis = ROWS if devices > 1 else None
  rows = PartitionSpec(axis)
  columns = COLUMNS if split > 1 and divides and student.table.shape[1] % split == 0 else None

  def by_rows(turns: bool, x: Any) -> Any:
    return x._replace(table=to_rows(x.table, missing)) if turns else x

  def place(turns: bool, x: Any) -> Any:
    if _is_logits(x):
      of_rows = lambda leaf: rows if leaf.shape[:1] == (num_items,) else PartitionSpec()  # noqa: E731
      specs: Any = (tokens, *jax.tree.map(of_rows, x[1:]))
      found = FactoredLogits(*specs)
      return found._replace(table=PartitionSpec(None, axis)) if turns else found
    return tokens if jnp.shape(x)[:1] == (num_tokens,) else PartitionSpec()

  def run(student: FactoredLogits, given: Any) -> Any:
    student, given = jax.tree.map(by_rows, turned, (student, given))
    if columns:
      # Cast first: gradients are then scattered over the columns, and only their parts summed.
      table = vary_as(student.table, student.query)
      table = jax.lax.all_gather(table, columns, axis=1, tiled=True)
      student = student._replace(table=table)
    found = fn(axis, student, given)
    return found if by_token or not divides else jax.lax.psum(found, batch)

  places = jax.tree.map(place, turned, args)
  table = PartitionSpec(None, (columns, axis) if columns else axis)
  table = table if turned[0] else PartitionSpec(axis, columns)
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(places[0]._replace(table=table), places[1]),
    out_specs=tokens if by_token else PartitionSpec(),
  )(*args)


def _is_logits(x: Any) -> bool:
  return isinstance(x, FactoredLogits)


def _fill_up(x: Any, missing: int, turns: bool) -> Any:
  """Logits of so many more items, all of them impossible; what is no logits stays as it is.

  A table that is turned later is filled up then.
  """
  if not _is_logits(x):
    return x
  num_items = x.num_items

  def fill(leaf: Any, value: float = 0) -> Any:
    if leaf.shape[:1] != (num_items,):
      return leaf
    return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1), constant_values=value)

  bias = jnp.zeros(num_items, jnp.float32) if x.bias is None else x.bias
  return FactoredLogits(
    x.query, x.table if turns else jax.tree.map(fill, x.table), fill(bias, FLOOR)
  )
