"""The same step on every device: many steps in one compiled call, under `jit` or `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.mesh_table import MeshTable
from kdjax.train.step import TrainStep
from kdjax.tree import map_with_path
from kdjax.types import Apply, Array, FactoredLogits, Params, Path, Select

# (state, teacher_params, arrays, index [K, B], count, key) -> (state, metrics stacked over K).
Runner = Callable[[Any, Params, Any, Any, Any, Array], tuple[Any, dict[str, Any]]]


def make_mesh(*, data: int | None = None, model: int = 1, devices=None) -> Mesh:
  """A mesh with the axes `data` and `model`.

  Args:
    data: devices along which the batch is split; all that `model` leaves by default.
    model: devices along which tables are split.
    devices: `jax.devices()` by default.

  Raises:
    ValueError: if the axes need more devices than there are.

  Example:
    >>> make_mesh(data=1).shape["data"]
    1
  """
  devices = jax.devices() if devices is None else list(devices)
  data = len(devices) // model if data is None else data
  if data < 1 or data * model > len(devices):
    raise ValueError(
      f"a mesh of data={data} x model={model} needs {data * model} devices, there are "
      f"{len(devices)}"
    )
  return Mesh(np.array(devices[: data * model]).reshape(data, model), ("data", "model"))


def shardings(tree: Any, mesh: Mesh, *, select: Select = lambda path, leaf: False) -> Any:
  """Where every leaf lies: selected leaves split their rows over `model`, the rest is replicated.

  A selected leaf whose first axis the `model` axis does not divide is replicated.
  """

  def place(path, leaf):
    split = jnp.ndim(leaf) and leaf.shape[0] % mesh.shape["model"] == 0 and select(path, leaf)
    return NamedSharding(mesh, PartitionSpec("model") if split else PartitionSpec())

  return map_with_path(place, tree)


def on_mesh(apply: Apply, mesh: Mesh) -> Apply:
  """The same model, whose tables know the mesh they lie on: see `kdjax.mesh_table.MeshTable`.

  So a loss over its catalogue in factors runs on every device, and what looks rows up tells the
  others of its tokens alone. Tables of integers are left to the compiler.
  """

  def of_params(path: Path, leaf: Any) -> Any:
    is_table = path[-1:] == ("embedding",) and jnp.ndim(leaf) == 2
    return MeshTable(leaf, mesh) if is_table else leaf

  def placed(params, batch, *, key=None):
    outputs = apply(map_with_path(of_params, params), batch, key=key)
    logits = outputs.logits
    if not isinstance(logits, FactoredLogits) or not isinstance(logits.table, jax.Array):
      return outputs
    return outputs._replace(logits=logits._replace(table=MeshTable(logits.table, mesh)))

  return placed


def jit_runner(train_step: TrainStep, *, mesh: Mesh | None = None) -> Runner:
  """Runs up to K steps in one compiled loop over data that lies on the device.

  With a mesh each batch is split over `data`; put `state` and `teacher_params` there by `shardings`
  first (`jax.device_put`), and they stay as they were put. Without one it is a single-device run.

  Args:
    train_step: from `make_train_step`.
    mesh: from `make_mesh`, or None.

  Returns:
    A `Runner`: `arrays` maps names to `[R, ...]`, `index` int32 `[K, B]` says which rows each step
    takes, and the first `count` of the K are run, so one program serves every remainder. The state
    is donated. Metrics have a leading axis K, zero where not run.

  Raises:
    ValueError: if the `data` axis does not divide the batch.
  """

  def many(state, teacher_params, arrays, index, count, key):
    if mesh is not None:
      _check_divides(index.shape[1], mesh.shape["data"])
      split = NamedSharding(mesh, PartitionSpec("data"))

    def take(rows):
      batch = jax.tree.map(lambda x: x[rows], arrays)
      if mesh is None:
        return batch
      return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, split), batch)

    return _loop(train_step, take, state, teacher_params, index, count, key)

  if mesh is None:
    return jax.jit(many, donate_argnums=0)

  compiled: dict[Any, Any] = {}

  def run(state, teacher_params, arrays, index, count, key):
    # The output state is pinned to where the input lies, or the compiler would move it at will.
    places = jax.tree.map(lambda x: x.sharding, state)
    cache_key = tuple(jax.tree.leaves(places))
    if cache_key not in compiled:
      compiled[cache_key] = jax.jit(many, donate_argnums=0, out_shardings=(places, None))
    return compiled[cache_key](state, teacher_params, arrays, index, count, key)

  return run


def pmap_runner(make_step: Callable[..., TrainStep], *, devices=None) -> Runner:
  """The runner under `jax.pmap`: one replica of the state a device, gradients summed by `psum`.

  Args:
    make_step: `make_step(merge=...)`, that is `functools.partial(make_train_step, objective, tx)`.
    devices: `jax.devices()` by default.

  Returns:
    A `Runner` that takes and gives unreplicated trees. With no dropout and no augmentation it
    equals the single-device step; with them each device draws its own randomness.

  Raises:
    ValueError: if the devices do not divide the batch.
  """
  devices = jax.devices() if devices is None else list(devices)
  train_step = make_step(merge=lambda tree: jax.lax.psum(tree, "data"))

  def many(state, teacher_params, arrays, index, count, key):
    key = jax.random.fold_in(key, jax.lax.axis_index("data"))
    return _loop(
      train_step,
      lambda rows: jax.tree.map(lambda x: x[rows], arrays),
      state,
      teacher_params,
      index,
      count,
      key,
    )

  mapped = jax.pmap(many, "data", in_axes=(None, None, None, 1, None, None), devices=devices)

  def run(state, teacher_params, arrays, index, count, key):
    _check_divides(index.shape[1], len(devices))
    index = jnp.reshape(index, (index.shape[0], len(devices), -1))
    result = mapped(state, teacher_params, arrays, index, count, key)
    return jax.tree.map(lambda x: x[0], result)

  return run


def _loop(train_step, take, state, teacher_params, index, count, key):
  """`count` steps of the K that `index [K, B]` has room for."""
  if index.shape[0] == 1:  # XLA's CPU compiler runs convolutions inside of loops ten times slower.
    state, metrics = train_step(state, teacher_params, take(index[0]), key)
    return state, jax.tree.map(lambda x: x[None], metrics)
  shapes = jax.eval_shape(
    lambda state: train_step(state, teacher_params, take(index[0]), key)[1], state
  )
  history = jax.tree.map(lambda s: jnp.zeros((index.shape[0], *s.shape), s.dtype), shapes)

  def body(nth, carry):
    state, history = carry
    state, metrics = train_step(state, teacher_params, take(index[nth]), key)
    return state, jax.tree.map(lambda all, one: all.at[nth].set(one), history, metrics)

  return jax.lax.fori_loop(0, count, body, (state, history))


def _check_divides(batch_size: int, parts: int) -> None:
  if batch_size % parts:
    raise ValueError(
      f"a batch of {batch_size} rows does not divide over {parts} devices; "
      f"use a batch size that is a multiple of {parts}"
    )
