"""Losses on validation rows: what decides where predictions are not trained."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.reduce import Mean, safe_divide
from kdjax.train import objective
from kdjax.train.step import Augment
from kdjax.types import Apply, Params

LOSS = "minus_loss"  # The greater the better, as all metrics that decide.


def make_valid_loss(
  student_apply: Apply,
  terms: Sequence[objective.Term],
  teacher_apply: Apply | None,
  rows: Mapping[str, np.ndarray],
  augment: Augment,
  num_steps: int,
  *,
  size: int = 64,
) -> Callable[[Params, Params], dict[str, float]]:
  """The terms on validation rows, without dropout, at the weights that they have in the end.

  Terms with a memory, which is of the training rows, are left out.

  Args:
    student_apply: of the objective.
    terms: its terms.
    teacher_apply: of the objective.
    rows: `[R, ...]` arrays as those of training.
    augment: as in training; here it draws the same every time.
    num_steps: of the training.
    size: rows of a block.

  Returns:
    `(params, teacher_params) -> {LOSS: minus the weighted sum, term: its mean, ...}`, where the
    params are those that the objective trains.

  Raises:
    ValueError: if all terms have a memory.
  """
  kept = [term for term in terms if term.memory is None]
  if not kept:
    named = ", ".join(term.name for term in terms)
    raise ValueError(f"{named}: no validation row tells how good this is; add a loss that one does")
  goal = objective.make_objective(student_apply, kept, teacher_apply=teacher_apply)
  weights = {name: float(w) for name, w in goal.weights(jnp.int32(num_steps)).items()}

  @jax.jit
  def means(params, teacher_params, batch, key):
    batch = augment(batch, key, jnp.int32(num_steps))
    return goal.means(params, teacher_params, batch, None, {})[0]

  def valid_loss(params: Params, teacher_params: Params) -> dict[str, float]:
    sums: dict[str, Mean] = {}
    count = len(next(iter(rows.values())))
    for first in range(0, count, size):
      batch = {name: jnp.asarray(values[first : first + size]) for name, values in rows.items()}
      key = jax.random.fold_in(jax.random.key(0), first)
      found = means(params, teacher_params, batch, key)
      sums = {name: sums[name] + mean if sums else mean for name, mean in found.items()}
    values = {name: float(safe_divide(*mean)) for name, mean in sums.items()}
    return {LOSS: -sum(w * values[name] for name, w in weights.items())} | values

  return valid_loss
