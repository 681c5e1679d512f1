"""What training carries from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from kdjax.train.placement import put, shardings
from kdjax.types import Array, Params


class TrainState(NamedTuple):
  """Everything a step changes; the teacher is never part of it.

  Attributes:
    step: int32 `[]`, how many steps were taken.
    params: `{"student": ..., "helpers": {term: ...}}`; helpers are the learned parts of the
      objective (projectors), dropped at export.
    opt_state: of the optax transformation; pruning masks live in it.
    memory: `{term: memory}`, what terms of the objective remember without learning it.
  """

  step: Array
  params: Params
  opt_state: optax.OptState
  memory: Params


def init_state(
  params: Params,
  tx: optax.GradientTransformation,
  memory: Params | None = None,
  *,
  mesh: Mesh | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    params: `{"student": ..., "helpers": ...}`.
    tx: the optax transformation.
    memory: of `Objective.init_memory`, if any.
    mesh: split the state over it, by `kdjax.train.shardings`: what the optimizer adds to the
      params is made where it lies, and never whole.
  """

  def init(params: Params, memory: Params) -> TrainState:
    return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params), memory)

  if mesh is None:
    return init(params, memory or {})
  places = shardings(jax.eval_shape(init, params, memory or {}), mesh)
  params, memory = put((params, memory or {}), (places.params, places.memory))
  return jax.jit(init, out_shardings=places)(params, memory)
