"""What training carries from step to step."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

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
  params: Params, tx: optax.GradientTransformation, memory: Params | None = None
) -> TrainState:
  """The state before the first step; `memory` of `Objective.init_memory`, if any."""
  return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params), memory or {})
