"""A function with its axes followed from the params to the outputs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.traced.extents import Extent, atoms, fix
from kdjax.traced.flow import flow, free_atoms
from kdjax.traced.loops import LOOPS, Fills
from kdjax.traced.program import Program, Value, build, new_value, trace
from kdjax.traced.rules import RULES
from kdjax.tree import leaves_with_path, path_of
from kdjax.types import Params


class Traced(NamedTuple):
  """A function whose axes are tied.

  Attributes:
    program: of the function.
    leaves: path and value of every param.
    fills: what stands where units are masked, by value and atom.
    outputs: structure of what the function returns.
  """

  program: Program
  leaves: list[tuple[str, Value]]
  fills: Fills
  outputs: Any


def follow(apply_fn: Callable[..., Any], params: Params, example: tuple[Any, ...]) -> Traced:
  """Traces a function, ties all axes and fixes those that must stay whole.

  Args:
    apply_fn: `apply_fn(params, *example)`.
    params: any pytree of arrays or their `jax.ShapeDtypeStruct`s.
    example: further arguments.

  Returns:
    Traced. What must stay whole has a `reason`: axes of the example, of outputs and of arrays that
    are no parameters, and whatever an operation does not allow.
  """
  closed, outputs = trace(apply_fn, params, *example)
  ins = [new_value(var.aval) for var in closed.jaxpr.invars]
  ties = {name: rule.tie for name, rule in RULES.items()}
  ties |= {name: functools.partial(tied, ties=ties) for name, tied in LOOPS.items()}
  program = build(closed, ties, ins)
  leaves = ["/".join(path) for path, _ in leaves_with_path(params)]
  for value in ins[len(leaves) :]:
    for axis in value.axes:
      fix(axis, "an axis of the example")
  for (key_path, _), value in zip(
    jax.tree_util.tree_leaves_with_path(outputs), program.outs, strict=True
  ):
    name = "/".join(path_of(key_path))
    for axis in value.axes:
      fix(axis, f"an axis of the output {name}".rstrip())
  params_in = list(zip(leaves, ins, strict=False))
  for _, value in params_in:
    for axis in value.axes:
      for atom in _repeated(axis):
        fix(atom, "squared within one axis")
  fills: Fills = {
    value: {atom: np.zeros([], value.dtype)[()] for atom in free_atoms(value)}
    for _, value in params_in
  }
  flow(program, fills, check=True)
  return Traced(program, params_in, fills, outputs)


def _repeated(extent: Extent) -> list[Extent]:
  """Atoms that stand more than once within a product."""
  extent = extent.resolve()
  if extent.operation == "product":
    inner = [atom for part in extent.parts for atom in set(atoms(part))]
    return [atom for atom in set(inner) if inner.count(atom) > 1]
  return [atom for part in extent.parts for atom in _repeated(part)]
