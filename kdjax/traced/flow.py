"""What stands in every value of a program wherever units are masked."""

import functools
from collections.abc import Callable
from typing import Any

from kdjax.traced.extents import Extent, atoms, fix
from kdjax.traced.loops import FLOWS, Fills
from kdjax.traced.program import Operation, Program, Value
from kdjax.traced.rule import ALIKE, evaluate, is_zero
from kdjax.traced.rules import ELEMENTWISE, RULES, SAME

# Operations whose work on one masked unit can be done again, where a sum misses it.
_RETOLD = ELEMENTWISE | SAME | {"broadcast_in_dim"}


def flow(program: Program, fills: Fills, *, check: bool) -> None:
  """Finds what stands where units are masked; with `check`, fixes what is summed and not 0."""

  def at(value: Value, atom: Extent) -> Any:
    return value.uniform if value.uniform is not None else fills.get(value, {}).get(atom)

  for op in program.operations:
    if op.name in FLOWS:
      FLOWS[op.name](op, fills, flow, check)
      continue
    if op.name not in RULES:
      continue
    rule = RULES[op.name]
    lost = (None,) if op.name in _RETOLD else (None, ALIKE)
    for out in op.outs:
      found = {atom: rule.fill(op, at, atom, out) for atom in free_atoms(out)}
      fills[out] = {atom: number for atom, number in found.items() if number not in lost}
    _find_uniform(op)
    if not check:
      continue
    for axis, values in rule.sums(op):
      for atom in atoms(axis):
        if not any(is_zero(at(value, atom)) for value in values):
          fix(atom, f"{op.name} sums over it, and what is masked is not 0 there")
    if op.name == "reduce_sum":
      _check_sum(op, functools.partial(at, op.ins[0]))


def _check_sum(op: Operation, number_of: Callable[[Extent], Any]) -> None:
  """Units that are not 0 when masked can be added again, if they are all there is to an axis."""
  again: list[int] = []
  for place in op.params["axes"]:
    axis = op.ins[0].axes[place].resolve()
    for atom in atoms(axis):
      number = number_of(atom)
      if atom.reason is not None or is_zero(number):
        continue
      once = sum(atom in set(atoms(other)) for other in op.ins[0].axes) == 1
      if number is None or axis is not atom or again or not once:
        fix(atom, "reduce_sum runs over it, and what is masked there is not 0, nor one number")
      else:
        again.append(place)
  op.notes = again


def _find_uniform(op) -> None:
  """One number everywhere stays one number everywhere."""
  numbers = [value.uniform for value in op.ins]
  if op.name in ("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice"):
    op.outs[0].uniform = numbers[0]
  elif op.name in ELEMENTWISE and all(number is not None for number in numbers):
    op.outs[0].uniform = evaluate(op, numbers)


def free_atoms(value: Value) -> set[Extent]:
  """Its atoms that may shrink."""
  return {atom for axis in value.axes for atom in atoms(axis) if atom.reason is None}
