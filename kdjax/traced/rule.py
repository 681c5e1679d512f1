"""What a primitive does to axes: which are the same, what stays of masked units, new sizes.

A rule has up to four parts. `tie(op)` ties the axes of results to those of operands. `fill(op, at,
atom, out)` says what stands in a result wherever a unit of the atom was masked: a number, ALIKE if
it is the same for all units of the atom but depends on the data, or None; `at(value, atom)` tells
it of the operands. `resize(op, size)` gives the parameters that are different once axes are
shorter. `sums(op)` names the axes over which an operation adds up products: removing is masking
only if what is masked is 0 in one of them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.traced.extents import Extent, atoms, tie
from kdjax.traced.program import Operation, Value

ALIKE = object()
At = Callable[[Value, Extent], Any]
Size = Callable[[Extent], int]


class Rule(NamedTuple):
  """What is known of one primitive; see the module."""

  tie: Callable[[Operation], None]
  fill: Callable[[Operation, At, Extent, Value], Any]
  resize: Callable[[Operation, Size], dict[str, Any]] = lambda op, size: {}
  sums: Callable[[Operation], Iterator[tuple[Extent, list[Value]]]] = lambda op: iter(())


def is_zero(number: Any) -> bool:
  """Whether what is masked is known, and 0."""
  return number is not None and number is not ALIKE and number == 0


def agreed(numbers: list[Any]) -> Any:
  """The number that all of them are, or None."""
  first = numbers[0] if numbers else None
  return first if first is not None and all(n is not None and n == first for n in numbers) else None


def tie_elementwise(op: Operation) -> None:
  """Axes of equal length at equal places are the same; those of length 1 are repeated."""
  for out in op.outs:
    for value in op.ins:
      for axis, other in zip(out.axes, value.axes, strict=False):
        if axis.size == other.size and len(out.axes) == len(value.axes):
          tie(axis, other)


def covers(value: Value, out: Value, atom: Extent) -> bool:
  """Whether a unit that is masked in an operand of the shape of `out` is masked there."""
  return len(value.axes) == len(out.axes) and all(
    value.shape[i] == out.shape[i] for i, axis in enumerate(out.axes) if atom in set(atoms(axis))
  )


def apart(value: Value, atom: Extent) -> bool:
  """Whether an array has no axis with the atom: it is the same for all of its units."""
  return not any(atom in set(atoms(axis)) for axis in value.axes)


def evaluate(op: Operation, numbers: list[Any]) -> Any:
  """What an elementwise operation makes of numbers, ALIKE and None."""
  if op.name in ("mul", "and") and any(map(is_zero, numbers)):
    return next(filter(is_zero, numbers))
  if op.name in ("div", "rem") and is_zero(numbers[0]):
    return numbers[0]
  if op.name == "select_n" and ALIKE not in numbers[1:] and agreed(numbers[1:]) is not None:
    return numbers[1]
  if any(n is None for n in numbers):
    return None
  if any(n is ALIKE for n in numbers):
    return ALIKE
  scalars = [
    np.asarray(n, v.dtype) if np.asarray(n).dtype != v.dtype else n
    for n, v in zip(numbers, op.ins, strict=True)
  ]
  params = dict(op.params)
  if "sharding" in params:
    params["sharding"] = None
  with jax.ensure_compile_time_eval():  # Under `jit` too: these are numbers, not operations.
    return np.asarray(op.primitive.bind(*scalars, **params))[()]


def fill_elementwise(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  """The operation on what is masked in the operands."""

  def there(value: Value) -> Any:
    if value.uniform is not None:
      return value.uniform
    if covers(value, out, atom):
      return at(value, atom)
    return ALIKE if apart(value, atom) else None

  return evaluate(op, [there(value) for value in op.ins])


def fill_unknown(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  """Nothing is known."""
  del op, at, atom, out


def fill_first(op: Operation, at: At, atom: Extent, out: Value) -> Any:
  """The operand's entries, elsewhere."""
  del out
  return at(op.ins[0], atom)
