"""Objectives: weighted terms over the outputs of student and teacher."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.reduce import Mean
from kdjax.types import Apply, Array, Batch, Outputs, Params


class Term(NamedTuple):
  """One weighted loss of an objective.

  Attributes:
    name: by which metrics and errors call it; unique within an objective.
    loss: `(student_outputs, teacher_outputs, batch) -> Mean or scalar`, or a pair of it and of
      `{name: Mean}` that are only logged; with `init` it takes its own parameters first.
    weight: a number, or an optax schedule of the step.
    init: `(key, student_outputs, teacher_outputs) -> params` of what the term itself learns, such
      as a projector; None for nothing.
  """

  name: str
  loss: Callable[..., Any]
  weight: float | Callable[[Array], Array] = 1.0
  init: Callable[[Array, Outputs, Outputs], Params] | None = None


class Objective(NamedTuple):
  """Terms bound to the functions whose outputs they compare.

  Attributes:
    init: `(key, student_params, teacher_params, batch) -> params`, the tree that is trained:
      `{"student": ..., "helpers": {term: ...}}`.
    means: `(params, teacher_params, batch, key) -> {term: Mean}`, unweighted and undivided; also
      what the terms only log.
    weights: `(step) -> {term: weight}`; what is only logged has none.
  """

  init: Callable[[Array, Params, Params, Batch], Params]
  means: Callable[[Params, Params, Batch, Array | None], dict[str, Mean]]
  weights: Callable[[Array], dict[str, Array]]


def make_objective(
  student_apply: Apply, terms: Sequence[Term], *, teacher_apply: Apply | None = None
) -> Objective:
  r"""An objective $L = \sum_k w_k L_k(\text{student}, \text{teacher}, \text{batch})$.

  With `teacher_apply` the teacher runs, without dropout, on the same batch; its parameters are an
  argument, and the only `stop_gradient` of the library stands here. A batch that brings the
  teacher's outputs under `batch["teacher"]` is used as it is, and the terms cannot tell.

  Args:
    student_apply: `apply(params, batch, key=key) -> Outputs`.
    terms: at least one, names unique.
    teacher_apply: the teacher's `apply`, or None for no teacher.

  Returns:
    An `Objective`.

  Raises:
    ValueError: if there is no term or two share a name.
  """
  names = [term.name for term in terms]
  if not names or len(set(names)) < len(names):
    raise ValueError(f"an objective needs one term or more, with unique names; got {names}")

  def outputs(params, teacher_params, batch, key):
    student = student_apply(params, batch, key=key)
    teacher = batch.get("teacher")
    if teacher is None and teacher_apply is not None:
      teacher = teacher_apply(teacher_params, batch)
    return student, jax.lax.stop_gradient(teacher)

  def init(key, student_params, teacher_params, batch):
    helpers = {}
    if any(term.init for term in terms):
      shapes = jax.eval_shape(
        lambda s, t, b: outputs(s, t, b, None), student_params, teacher_params, batch
      )
      for index, term in enumerate(terms):
        if term.init is not None:
          helpers[term.name] = term.init(jax.random.fold_in(key, index), *shapes)
    return {"student": student_params, "helpers": helpers}

  def means(params, teacher_params, batch, key):
    student, teacher = outputs(params["student"], teacher_params, batch, key)
    result = {}
    for term in terms:
      own = () if term.init is None else (params["helpers"][term.name],)
      value = term.loss(*own, student, teacher, batch)
      logged: dict[str, Mean] = {}
      if not isinstance(value, Mean) and isinstance(value, tuple):
        value, logged = value
      result[term.name] = value if isinstance(value, Mean) else Mean(value, jnp.float32(1.0))
      if twice := set(logged) & set(names):
        raise ValueError(f"the term {term.name!r} logs {sorted(twice)}, the name of another term")
      result |= jax.lax.stop_gradient(logged)
    return result

  def weights(step):
    return {
      term.name: jnp.asarray(
        term.weight(step) if callable(term.weight) else term.weight, jnp.float32
      )
      for term in terms
    }

  return Objective(init, means, weights)


def student_params(params: Mapping[str, Params]) -> Params:
  """What is exported of the trained tree: the student, without the helpers."""
  return params["student"]
