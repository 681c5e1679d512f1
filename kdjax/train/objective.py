"""Objectives: weighted terms over the outputs of student and teacher."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.reduce import Mean
from kdjax.types import Apply, Array, Batch, Outputs, Params


class Memory(NamedTuple):
  """What a term remembers from step to step without learning it, such as a bank of embeddings.

  Attributes:
    init: `(key, student_outputs, teacher_outputs) -> memory`, any pytree of floats.
    change: `(memory[, params], student_outputs, teacher_outputs, batch) -> change`, of the same
      structure: what this batch adds. Those of micro-batches and devices add up, hence each example
      should change what is its own.
  """

  init: Callable[[Array, Outputs, Outputs], Params]
  change: Callable[..., Params]


class Term(NamedTuple):
  """One weighted loss of an objective.

  Attributes:
    name: by which metrics and errors call it; unique within an objective.
    loss: `(student_outputs, teacher_outputs, batch) -> Mean or scalar`, or a pair of it and of
      `{name: Mean}` that are only logged; with `memory` it takes that first, with `init` its own
      parameters, after the memory.
    weight: a number, or an optax schedule of the step.
    init: `(key, student_outputs, teacher_outputs) -> params` of what the term itself learns, such
      as a projector; None for nothing.
    memory: what it remembers; None for nothing.
  """

  name: str
  loss: Callable[..., Any]
  weight: float | Callable[[Array], Array] = 1.0
  init: Callable[[Array, Outputs, Outputs], Params] | None = None
  memory: Memory | None = None


class Objective(NamedTuple):
  """Terms bound to the functions whose outputs they compare.

  Attributes:
    init: `(key, student_params, teacher_params, batch) -> params`, the tree that is trained:
      `{"student": ..., "helpers": {term: ...}}`.
    init_memory: of the same arguments: `{term: memory}`, of the terms that have one.
    means: `(params, teacher_params, batch, key, memory) -> ({term: Mean}, {term: change})`: the
      losses, unweighted and undivided, with what the terms only log; and how memories change.
    weights: `(step) -> {term: weight}`; what is only logged has none.
  """

  init: Callable[[Array, Params, Params, Batch], Params]
  init_memory: Callable[[Array, Params, Params, Batch], dict[str, Params]]
  means: Callable[..., tuple[dict[str, Mean], dict[str, Params]]]
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

  def make_of(inits, key, student_params, teacher_params, batch):
    if not inits:
      return {}
    shapes = jax.eval_shape(
      lambda s, t, b: outputs(s, t, b, None), student_params, teacher_params, batch
    )
    return {names[i]: init(jax.random.fold_in(key, i), *shapes) for i, init in inits.items()}

  def init(key, student_params, teacher_params, batch):
    inits = {i: term.init for i, term in enumerate(terms) if term.init is not None}
    helpers = make_of(inits, key, student_params, teacher_params, batch)
    return {"student": student_params, "helpers": helpers}

  def init_memory(key, student_params, teacher_params, batch):
    inits = {i: term.memory.init for i, term in enumerate(terms) if term.memory is not None}
    return make_of(inits, key, student_params, teacher_params, batch)

  def means(params, teacher_params, batch, key, memory):
    student, teacher = outputs(params["student"], teacher_params, batch, key)
    result, changes = {}, {}
    for term in terms:
      own = () if term.init is None else (params["helpers"][term.name],)
      if term.memory is not None:
        own = (memory[term.name], *own)
        change = term.memory.change(*own, student, teacher, batch)
        changes[term.name] = jax.lax.stop_gradient(change)
      result[term.name], logged = mean_of(term.loss(*own, student, teacher, batch))
      if twice := set(logged) & set(names):
        raise ValueError(f"the term {term.name!r} logs {sorted(twice)}, the name of another term")
      result |= jax.lax.stop_gradient(logged)
    return result, changes

  def weights(step):
    return {
      term.name: jnp.asarray(
        term.weight(step) if callable(term.weight) else term.weight, jnp.float32
      )
      for term in terms
    }

  return Objective(init, init_memory, means, weights)


def mean_of(value: Any) -> tuple[Mean, dict[str, Mean]]:
  """What a term's `loss` returned: its mean, and what is only logged."""
  logged: dict[str, Mean] = {}
  if not isinstance(value, Mean) and isinstance(value, tuple):
    value, logged = value
  return value if isinstance(value, Mean) else Mean(value, jnp.float32(1.0)), logged


def student_params(params: Mapping[str, Params]) -> Params:
  """What is exported of the trained tree: the student, without the helpers."""
  return params["student"]
