"""The same step on every device: many steps in one compiled call, under `jit` or `pmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.train.placement import split_batch
from kdjax.train.step import TrainStep
from kdjax.types import Array, Params

# (state, teacher_params, arrays, index [K, B], count, key) -> (state, metrics stacked over K).
Runner = Callable[[Any, Params, Any, Any, Any, Array], tuple[Any, dict[str, Any]]]


def jit_runner(train_step: TrainStep, *, mesh: Mesh | None = None) -> Runner:
  """Runs up to K steps in one compiled loop over data that lies on the device.

  With a mesh each batch is split over `data` and `fsdp`; put `state` and `teacher_params` there by
  `kdjax.train.shardings` first, and they stay as they were put. Without one it is a single-device
  run.

  Args:
    train_step: from `make_train_step`.
    mesh: from `make_mesh`, or None.

  Returns:
    A `Runner`: `arrays` maps names to `[R, ...]`, `index` int32 `[K, B]` says which rows each step
    takes, and the first `count` of the K are run, so one program serves every remainder. The state
    is donated. Metrics have a leading axis K, zero where not run.

  Raises:
    ValueError: if the `data` and `fsdp` axes do not divide the batch.
  """

  def many(state, teacher_params, arrays, index, count, key):
    if mesh is not None:
      _check_divides(index.shape[1], mesh.shape["data"] * mesh.shape["fsdp"])

    def take(rows):
      batch = jax.tree.map(lambda x: x[rows], arrays)
      return batch if mesh is None else split_batch(batch, mesh)

    return _loop(train_step, take, state, teacher_params, index, count, key)

  if mesh is None:
    return jax.jit(many, donate_argnums=0)

  compiled: dict[Any, Any] = {}
  everywhere = NamedSharding(mesh, PartitionSpec())

  def run(state, teacher_params, arrays, index, count, key):
    # The output state is pinned to where the input lies, or the compiler would move it at will.
    places = jax.tree.map(lambda x: x.sharding, state)
    cache_key = tuple(jax.tree.leaves(places))
    if cache_key not in compiled:
      compiled[cache_key] = jax.jit(many, donate_argnums=0, out_shardings=(places, everywhere))
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
