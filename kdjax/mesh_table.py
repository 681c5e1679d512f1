"""A table that knows the mesh it lies on, so that what reads it says little over the mesh."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.types import Array

ROWS = "model"  # The axis of a mesh that splits the rows of tables; the others split the batch.
COLUMNS = "fsdp"  # The axis that splits the columns as well, until a device needs them.


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("mesh",))
@dataclasses.dataclass(frozen=True)
class MeshTable:
  """A table `[V, d]` and the mesh it lies on; as an array where an array is wanted.

  The losses over a catalogue in factors run on every device of the mesh when the student's table
  is one: `student._replace(table=MeshTable(student.table, mesh))`; so do `metrics.rank_targets` and
  `metrics.top_k`. `kdjax.train.on_mesh` does so for a model.

  Attributes:
    values: float `[V, d]`. Losses split its rows over the axis `model`, which need not divide V.
      Its columns may lie split over `fsdp`; they are gathered where they are used.
    mesh: the other axes split the batch, where they divide it.

  Example:
    >>> import jax, numpy as np
    >>> mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    >>> MeshTable(jax.numpy.ones([3, 2]), mesh).shape
    (3, 2)
  """

  values: Array
  mesh: Mesh

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the whole table."""
    return self.values.shape

  @property
  def dtype(self) -> Any:
    """Of the values."""
    return self.values.dtype

  @property
  def ndim(self) -> int:
    """2."""
    return self.values.ndim

  def __jax_array__(self) -> Array:
    return _whole(self.mesh, self.values)

  def __getitem__(self, ids: Array) -> Array:
    return _take(self.mesh, self.values, ids)

  def astype(self, dtype: Any) -> "MeshTable":
    """The same table in another type."""
    return dataclasses.replace(self, values=self.values.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(mesh: Mesh, values: Array, ids: Array) -> Array:
  others = tuple(name for name in mesh.axis_names if name not in (ROWS, COLUMNS))
  columns = _columns(mesh, values, ids)
  batch = math.prod(mesh.shape[name] for name in (*others, COLUMNS)) if columns else 1
  if not columns or ids.shape[0] % batch:
    return _whole(mesh, values)[ids]
  # Devices tell each other their columns of what is read, and not those of the table.
  middle = [None] * (ids.ndim - 1)
  rows, _ = _in_use(mesh, values)
  found = _put(mesh, values, rows, columns)[_put(mesh, ids, others)]
  return _put(mesh, _put(mesh, found, others, *middle, columns), (*others, columns))


def _take_forward(mesh, values, ids):
  return _take(mesh, values, ids), (values, ids)


def _take_backward(mesh, saved, cotangent):
  values, ids = saved
  if _few(mesh, values, ids):
    # Devices tell each other what their tokens add, and not sums of all rows: fewer bytes.
    columns = _columns(mesh, values, ids)
    ids, cotangent = _put(mesh, ids), _put(mesh, cotangent, *[None] * ids.ndim, columns)
  return jnp.zeros_like(values).at[ids].add(cotangent.astype(values.dtype)), None


_take.defvjp(_take_forward, _take_backward)


def _put(mesh: Mesh, x: Array, *spec: Any) -> Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _in_use(mesh: Mesh, values: Array) -> tuple[str | None, str | None]:
  """How rows and columns are split where all columns are used: rows, or columns if these divide."""
  parts = mesh.shape.get(ROWS, 1)
  by_rows, by_columns = (parts > 1 and size % parts == 0 for size in values.shape)
  return ROWS if by_rows else None, ROWS if by_columns and not by_rows else None


def _whole(mesh: Mesh, values: Array) -> Array:
  """With the columns that `COLUMNS` may split on every device."""
  if mesh.shape.get(COLUMNS, 1) == 1:
    return values
  return _put(mesh, values, *_in_use(mesh, values))


def _few(mesh: Mesh, values: Array, ids: Array) -> bool:
  """Whether the rows that are read are fewer than those of the table, on a device."""
  return math.prod(ids.shape) < 2 * values.shape[0] / mesh.shape.get(ROWS, 1)


def _columns(mesh: Mesh, values: Array, ids: Array) -> str | None:
  """The axis that splits the columns, where it does, nothing else would, and few rows are read."""
  parts = mesh.shape.get(COLUMNS, 1)
  divides = (
    parts > 1 and values.shape[1] % parts == 0 and values.shape[0] % mesh.shape.get(ROWS, 1) == 0
  )
  return COLUMNS if divides and _few(mesh, values, ids) else None


def comes_by_columns(table: Any, mesh: Mesh) -> bool:
  """Whether a table lies by columns over `ROWS`, which does not divide its rows; see `to_rows`."""
  devices = mesh.shape.get(ROWS, 1)
  return (
    not hasattr(table, "rdot")
    and table.shape[0] % devices > 0
    and table.shape[1] % (devices * mesh.shape.get(COLUMNS, 1)) == 0
  )


def to_rows(table: Array, missing: int) -> Array:
  """A device's columns `[V, d / m]` of a table to its rows `[(V + missing) / m, d]`.

  For the inside of `jax.shard_map`: not every compiler finds that way without gathering the table.
  The `missing` rows, which the last device gets, are zeros.
  """
  table = jnp.pad(table, [(0, missing), (0, 0)])
  return jax.lax.all_to_all(table, ROWS, split_axis=0, concat_axis=1, tiled=True)


def of_all(values: Array, axis: str) -> Array:
  """`[T, n]` of every device of an axis beside each other, `[T, devices * n]`, the same on all.

  For the inside of `jax.shard_map`, whose types then know that it is the same.
  """
  places = jnp.zeros((jax.lax.axis_size(axis), *values.shape), values.dtype)
  every = jax.lax.psum(places.at[jax.lax.axis_index(axis)].set(values), axis)
  return jnp.swapaxes(every, 0, 1).reshape(len(values), -1)
