"""Where arrays lie on a mesh: which axes of params, optimizer state and rows are split, and how."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.mesh_table import MeshTable
from kdjax.tree import map_with_path
from kdjax.types import Apply, Array, Batch, FactoredLogits, Params, Path

# (the last names of a path, each perhaps with `*`, and where the axes of such a leaf lie).
Rule = tuple[tuple[str, ...], PartitionSpec]

BATCH_AXES = ("data", "fsdp")  # The mesh axes over which a batch is split.
AXES = (*BATCH_AXES, "model")

_ROWS, _COLUMNS = PartitionSpec("model", None), PartitionSpec(None, "model")
_VECTOR = PartitionSpec("model")


def _into(*path: str) -> list[Rule]:
  """A layer whose outputs are split: every device computes some of the hidden units."""
  return [((*path, "kernel"), _COLUMNS), ((*path, "bias"), _VECTOR)]


def _out_of(*path: str) -> list[Rule]:
  """A layer whose inputs are split: what the devices make of them is summed."""
  return [((*path, "kernel"), _ROWS)]


# What the `model` axis splits of the families in `kdjax.models`: the first rule that fits counts,
# or a later one where the devices do not divide what that splits.
MODEL_RULES: tuple[Rule, ...] = (
  (("position_embedding", "embedding"), PartitionSpec()),  # Small, and read by every token.
  (("embedding",), _ROWS),
  (("embedding",), _COLUMNS),  # Losses turn it to rows: each device sends and gets its share once.
  (("item_bias",), _VECTOR),
  (("token_bias",), _VECTOR),
  # Attention by heads, each of which is a run of columns.
  *_into("attention", "query"),
  *_into("attention", "key"),
  *_into("attention", "value"),
  *_out_of("attention", "out"),
  # Feed-forward layers and adapters of item features, by hidden units.
  *_into("up"),
  *_into("gate"),
  *_out_of("down"),
  *_into("adapter_*_up"),
  *_out_of("adapter_*_down"),
  # Layers in a row (mlp, ncf, two_tower), in turn: what one splits, the next one sums.
  *_into("*_in"),
  (("bias_in",), _VECTOR),
  *_into("hidden_*[02468]"),
  *_out_of("hidden_*[13579]"),
  (("*_conv_1", "kernel"), PartitionSpec(None, None, None, "model")),
  (("*_norm_2", "scale"), _VECTOR),
  (("*_norm_2", "bias"), _VECTOR),
  (("*_conv_2", "kernel"), PartitionSpec(None, None, "model", None)),
)
_OF_QTENSOR = ("values", "scale", "zero", "shadow")


def make_mesh(
  *, data: int | None = None, fsdp: int = 1, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh with the axes `data`, `fsdp` and `model`.

  A batch is split over `data` and `fsdp`; parameters and optimizer state over `fsdp` and `model`.

  Args:
    data: devices that share a batch and hold the same parameters; all that the others leave by
      default.
    fsdp: devices that share a batch and the parameters (fully sharded).
    model: devices over which tables, heads and hidden units are split.
    devices: `jax.devices()` by default.

  Raises:
    ValueError: if the axes need more devices than there are, or leave a process without any.

  Example:
    >>> dict(make_mesh(data=1).shape)
    {'data': 1, 'fsdp': 1, 'model': 1}
  """
  devices = jax.devices() if devices is None else list(devices)
  data = len(devices) // (fsdp * model) if data is None else data
  count = data * fsdp * model
  if min(data, fsdp, model) < 1 or count > len(devices):
    raise ValueError(
      f"a mesh of data={data} x fsdp={fsdp} x model={model} needs {max(count, fsdp * model)} "
      f"devices, there are {len(devices)}"
    )
  used = {device.process_index for device in devices[:count]}
  if idle := {device.process_index for device in jax.devices()} - used:
    raise ValueError(
      f"a mesh of {count} devices leaves process {min(idle)} without one; use all {len(devices)}"
    )
  return Mesh(np.array(devices[:count]).reshape(data, fsdp, model), AXES)


def shardings(
  tree: Params, mesh: Mesh, *, rules: Sequence[Rule] = MODEL_RULES, in_use: bool = False
) -> Any:
  """Where every leaf lies on the mesh.

  The first rule that fits a leaf's path says which axes the mesh axis `model` splits; where it does
  not divide them, the next one that fits; where none does, they stay whole. Of the other axes the
  largest that `fsdp` divides (the first of equals) is split over that. Paths are compared from
  their ends, so that one rule serves a parameter, its moments in the optimizer state and its
  pruning mask.

  Args:
    tree: arrays, or anything with their shapes: params, or a whole `TrainState`.
    mesh: of `make_mesh`.
    rules: `MODEL_RULES`, or others for a model of other names.
    in_use: True says where parameters lie while they are used: whole over `fsdp`.

  Returns:
    A tree of `NamedSharding`.

  Example:
    >>> mesh = make_mesh(data=1)
    >>> places = shardings({"up": {"kernel": jnp.ones([4, 8])}}, mesh)
    >>> tuple(places["up"]["kernel"].spec)
    ('fsdp', 'model')
  """

  return map_with_path(
    lambda path, leaf: leaf_sharding(path, jnp.shape(leaf), mesh, rules=rules, in_use=in_use), tree
  )


def leaf_sharding(
  path: Path,
  shape: tuple[int, ...],
  mesh: Mesh,
  *,
  rules: Sequence[Rule] = MODEL_RULES,
  in_use: bool = False,
) -> NamedSharding:
  """Where one leaf lies on the mesh, by its path and shape; see `shardings`.

  `functools.partial(leaf_sharding, mesh=mesh)` is what `kdjax.models.hub.load` takes as `sharding`:
  every device then reads its own part of the files.

  Args:
    path: of the leaf.
    shape: of the leaf.
    mesh: of `make_mesh`.
    rules: as for `shardings`.
    in_use: as for `shardings`.

  Example:
    >>> tuple(leaf_sharding(("up", "kernel"), (4, 8), make_mesh(data=1)).spec)
    ('fsdp', 'model')
  """
  names: list[str | None] = [None] * len(shape)
  for axis, name in enumerate(_spec_of(path, shape, mesh, rules)):
    names[axis] = name
  free = [
    axis
    for axis, size in enumerate(shape)
    if names[axis] is None and size and size % mesh.shape["fsdp"] == 0
  ]
  if free and not in_use:
    names[max(free, key=lambda axis: shape[axis])] = "fsdp"
  while names and names[-1] is None:
    names.pop()
  return NamedSharding(mesh, PartitionSpec(*names))


def _spec_of(
  path: Path, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule]
) -> PartitionSpec:
  path = path[:-1] if path and path[-1] in _OF_QTENSOR else path
  for pattern, spec in rules:
    ends = path[-len(pattern) :]
    fits = len(ends) == len(pattern) and all(map(fnmatchcase, ends, pattern))
    pairs = zip(spec, shape, strict=False)
    if fits and len(spec) <= len(shape) and all(n % mesh.shape[a] == 0 for a, n in pairs if a):
      return spec
  return PartitionSpec()


def put(tree: Params, places: Any) -> Params:
  """Arrays of the host on the devices; every process puts the parts that its own devices hold.

  Args:
    tree: the same NumPy (or single-device) arrays on every process; an array that lies on several
      devices goes from those to its place, not over the host.
    places: of `shardings`.
  """

  def one(x: Any, place: NamedSharding) -> Array:
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
      return jax.device_put(x, place)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

  return jax.tree.map(one, tree, places)


def split_batch(batch: Batch, mesh: Mesh) -> Batch:
  """A batch inside of a compiled step, split over `data` and `fsdp` where its rows divide."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  place = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

  def one(x: Array) -> Array:
    return x if x.shape[0] % parts else jax.lax.with_sharding_constraint(x, place)

  return jax.tree.map(one, batch)


def on_mesh(apply: Apply, mesh: Mesh, *, rules: Sequence[Rule] = MODEL_RULES) -> Apply:
  """A model that computes on a mesh: parameters gathered over `fsdp` as they are used.

  Without it the compiler may split activations over `fsdp` too, and move those instead. Its tables
  know the mesh (`kdjax.mesh_table.MeshTable`) and stay as they are stored until something reads
  them: a loss over its catalogue in factors runs on every device, and what looks rows up tells the
  others of its tokens alone. Tables of integers are left to the compiler.

  The mesh may be of other sizes than that of the step, over the same devices in the same order: so
  a teacher is split more than its student.

  Args:
    apply: the model.
    mesh: of `make_mesh`.
    rules: as for `shardings`.
  """

  def split(params: Params, batch: Batch, *, key: Array | None = None) -> Any:
    stored, used = (shardings(params, mesh, rules=rules, in_use=use) for use in (False, True))
    places = jax.tree.map(
      lambda own, rest, use: rest if own else use, map_with_path(is_table, params), stored, used
    )
    params = jax.lax.with_sharding_constraint(params, places)
    outputs = apply(map_with_path(table, params), split_batch(batch, mesh), key=key)
    logits = outputs.logits
    if not isinstance(logits, FactoredLogits) or not isinstance(logits.table, jax.Array):
      return outputs
    return outputs._replace(logits=logits._replace(table=MeshTable(logits.table, mesh)))

  def is_table(path: Path, leaf: Any) -> bool:
    return path[-1:] == ("embedding",) and jnp.ndim(leaf) == 2

  def table(path: Path, leaf: Any) -> Any:
    return MeshTable(leaf, mesh) if is_table(path, leaf) else leaf

  return split


def put_rows(arrays: Mapping[str, np.ndarray], mesh: Mesh | None) -> dict[str, Array]:
  """Rows split over all devices of the mesh; each process reads those of its own devices alone.

  Args:
    arrays: `[R, ...]` NumPy arrays or memory maps.
    mesh: or None for the one device.

  Returns:
    The arrays by name; with rows of zeros at the end, where the devices do not divide R.
  """
  if mesh is None:
    return {name: jnp.asarray(values) for name, values in arrays.items()}
  place = NamedSharding(mesh, PartitionSpec(AXES))

  def one(values: np.ndarray) -> Array:
    count = -(-len(values) // mesh.size) * mesh.size

    def read(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(count)
      own = np.asarray(values[start:stop])
      return np.pad(own, [(0, stop - start - len(own))] + [(0, 0)] * (own.ndim - 1))

    return jax.make_array_from_callback((count, *values.shape[1:]), place, read)

  return {name: one(values) for name, values in arrays.items()}


def own_rows(batch_size: int, mesh: Mesh | None) -> np.ndarray:
  """Which rows of every batch the devices of this process take: int `[n]`, ascending."""
  rows = np.arange(batch_size)
  if mesh is None:
    return rows
  place = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
  parts = place.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([rows[index] for index in parts if index is not None]))


def put_own_rows(values: np.ndarray, batch_size: int, mesh: Mesh | None) -> Array:
  """Batches from what every process read of them: `[n, K, ...]` of `own_rows` to `[B * K, ...]`.

  Row `b * K + k` of the result is row b of the kth batch.
  """
  flat = values.reshape(-1, *values.shape[2:])
  if mesh is None:
    return jnp.asarray(flat)
  place = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
  shape = (batch_size * values.shape[1], *values.shape[2:])
  return jax.make_array_from_process_local_data(place, flat, shape)
