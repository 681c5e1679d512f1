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


@functools.partial(jax.tree_util.register_dataclass, data_fields=("values",), meta_fields=("mesh",))
@dataclasses.dataclass(frozen=True)
class MeshTable:
  """A table `[V, d]` and the mesh it lies on; as an array where an array is wanted.

  The losses over a catalogue in factors run on every device of the mesh when the student's table
  is one: `student._replace(table=MeshTable(student.table, mesh))`. `kdjax.train.parallel.on_mesh`
  does so for a model.

  Attributes:
    values: float `[V, d]`. Losses split its rows over the axis `model`, which need not divide V.
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
    return self.values

  def __getitem__(self, ids: Array) -> Array:
    return _take(self.mesh, self.values, ids)

  def astype(self, dtype: Any) -> "MeshTable":
    """The same table in another type."""
    return dataclasses.replace(self, values=self.values.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(mesh: Mesh, values: Array, ids: Array) -> Array:
  del mesh
  return values[ids]


def _take_forward(mesh, values, ids):
  return _take(mesh, values, ids), (values, ids)


def _take_backward(mesh, saved, cotangent):
  values, ids = saved
  rows = values.shape[0] / mesh.shape.get(ROWS, 1)
  if math.prod(ids.shape) < 2 * rows:
    # Devices tell each other what their tokens add, and not sums of all rows: fewer bytes.
    everywhere = NamedSharding(mesh, PartitionSpec())
    ids, cotangent = (jax.lax.with_sharding_constraint(x, everywhere) for x in (ids, cotangent))
  return jnp.zeros_like(values).at[ids].add(cotangent.astype(values.dtype)), None


_take.defvjp(_take_forward, _take_backward)
