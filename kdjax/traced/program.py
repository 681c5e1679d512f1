"""A traced function as a flat list of operations on values whose axes are extents.

Calls are opened where they stand; loops and branches keep programs of their own. Building a program
ties all axes that must shrink together (`kdjax.traced.rules`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kdjax.traced.extents import Extent, fix

# Primitives that call one inner function on their own operands.
_CALLS = {
  "jit",
  "pjit",
  "closed_call",
  "core_call",
  "custom_jvp_call",
  "custom_vjp_call",
  "custom_vjp_call_jaxpr",
  "remat",
  "remat2",
  "checkpoint",
}


@dataclasses.dataclass(eq=False)
class Value:
  """An array of the program.

  Attributes:
    shape: before anything shrinks.
    dtype: of its entries.
    axes: an extent an axis.
    uniform: the one number that all entries are, or None.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: list[Extent]
  uniform: Any = None


@dataclasses.dataclass(eq=False)
class Operation:
  """One primitive.

  Attributes:
    primitive: what to bind.
    params: its parameters, with the sizes of before.
    ins: operands.
    outs: results.
    bodies: of a loop or a branch.
    notes: what tying the axes has found out and a resize needs.
  """

  primitive: Any
  params: dict[str, Any]
  ins: list[Value]
  outs: list[Value]
  bodies: list["Program"] = dataclasses.field(default_factory=list)
  notes: Any = None

  @property
  def name(self) -> str:
    """Of the primitive."""
    return self.primitive.name


@dataclasses.dataclass(eq=False)
class Program:
  """Operations in order.

  Attributes:
    ins: what it is called with.
    constants: values that are known, and their arrays.
    operations: in order.
    outs: what it returns.
  """

  ins: list[Value]
  constants: list[tuple[Value, Any]]
  operations: list[Operation]
  outs: list[Value]


Tie = Callable[[Operation], None]


def new_value(aval: Any) -> Value:
  """A value with axes of its own."""
  return Value(tuple(aval.shape), aval.dtype, [Extent(size) for size in aval.shape])


def build(closed: core.ClosedJaxpr, ties: Mapping[str, Tie], ins: Sequence[Value]) -> Program:
  """The program of a jaxpr on given values; every operation ties its axes as `ties` says.

  An operation that `ties` does not know fixes all axes that it meets.
  """
  program = Program(list(ins), [], [], [])
  program.outs = _inline(program, closed, ties, program.ins)
  return program


def trace(fn: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
  """The jaxpr of `fn`, and the structure of what it returns."""
  closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  return closed, shapes


def _inline(
  program: Program, closed: core.ClosedJaxpr, ties: Mapping[str, Tie], ins: Sequence[Value]
) -> list[Value]:
  jaxpr = closed.jaxpr
  known: dict[Any, Value] = dict(zip(jaxpr.invars, ins, strict=True))
  for var, array in zip(jaxpr.constvars, closed.consts, strict=True):
    value = known[var] = new_value(var.aval)
    program.constants.append((value, array))
    if not value.shape:
      value.uniform = _scalar(array)
    for axis in value.axes:
      fix(axis, "an axis of an array that is no parameter")

  def read(atom: Any) -> Value:
    if not isinstance(atom, core.Literal):
      return known[atom]
    value = new_value(atom.aval)
    value.uniform = _scalar(atom.val)
    program.constants.append((value, atom.val))
    return value

  for eqn in jaxpr.eqns:
    operands = [read(atom) for atom in eqn.invars]
    name = eqn.primitive.name
    if name in _CALLS:
      outs = _inline(program, _inner(eqn.params), ties, operands)
      known.update(zip(eqn.outvars, outs, strict=True))
      continue
    results = [new_value(var.aval) for var in eqn.outvars]
    operation = Operation(eqn.primitive, dict(eqn.params), operands, results)
    program.operations.append(operation)
    if name in ties:
      ties[name](operation)
    else:
      for axis in (axis for value in operands + results for axis in value.axes):
        fix(axis, f"{name} cannot be followed")
    known.update(zip(eqn.outvars, results, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _inner(params: Mapping[str, Any]) -> core.ClosedJaxpr:
  found = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
  return found if isinstance(found, core.ClosedJaxpr) else core.ClosedJaxpr(found, [])


def _scalar(value: Any) -> Any:
  """A number, where it is one: keys of random numbers are none, nor what is being traced."""
  extended = jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.extended)
  if extended or isinstance(value, jax.core.Tracer):
    return None
  return np.asarray(value)[()]
