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
  """

  step: Array
  params: Params
  opt_state: optax.OptState


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(jnp.zeros([], jnp.int32), params, tx.init(params))
