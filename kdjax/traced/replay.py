"""Runs a program on arrays whose axes have become shorter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.traced.extents import Extent
from kdjax.traced.loops import RUNS, Fills
from kdjax.traced.program import Operation, Program, Value
from kdjax.traced.rule import ALIKE, apart
from kdjax.traced.rules import RULES


def run(
  program: Program,
  args: list[Any],
  size: Callable[[Extent], int],
  fills: Fills,
  *,
  watch: Callable[[Operation, list[Any]], None] = lambda op, ins: None,
) -> list[Any]:
  """Evaluates a program whose axes have new sizes.

  Args:
    program: from `follow`.
    args: arrays, as many as it has ins.
    size: entries of an extent now.
    fills: from `follow`.
    watch: sees every operation and its operands, but those inside of loops.

  Returns:
    The values of its outs.
  """
  known: dict[Value, Any] = dict(zip(program.ins, args, strict=True))
  known.update(program.constants)
  for op in program.operations:
    ins = [known[value] for value in op.ins]
    watch(op, ins)
    if op.name in RUNS:
      outs = RUNS[op.name](op, ins, lambda body, inner: run(body, inner, size, fills))
    else:
      # Old sizes and what the shapes were sharded by go together.
      new = {"sharding": None} if op.params.get("sharding") is not None else {}
      new |= RULES[op.name].resize(op, size) if op.name in RULES else {}
      outs = op.primitive.bind(*ins, **op.params | new)
      if op.name == "reduce_sum" and op.notes:
        outs = outs + _missing(op, program, known, size, fills)
    outs = outs if op.primitive.multiple_results else [outs]
    known.update(zip(op.outs, outs, strict=True))
  return [known[value] for value in program.outs]


def _missing(op: Operation, program: Program, known, size, fills: Fills) -> Any:
  """What masked units would add to a sum: their number times one of them."""
  (place,) = op.notes
  atom = op.ins[0].axes[place].resolve()
  makers = {out: made for made in program.operations for out in made.outs}

  def one(value: Value) -> Any:
    """The value with a single masked unit of the atom in place of those that stayed."""
    if apart(value, atom):
      return known[value]
    number = value.uniform if value.uniform is not None else fills[value][atom]
    if number is not ALIKE:
      shape = [1 if axis.resolve() is atom else size(axis) for axis in value.axes]
      return jnp.full(shape, number, value.dtype)
    made = makers[value]
    if made.name == "broadcast_in_dim":
      place = next(i for i, axis in enumerate(value.axes) if axis.resolve() is atom)
      return jax.lax.slice_in_dim(known[value], 0, 1, axis=place)
    outs = made.primitive.bind(*map(one, made.ins), **made.params)
    return outs[made.outs.index(value)] if made.primitive.multiple_results else outs

  removed = atom.size - size(atom)
  return removed * jnp.sum(one(op.ins[0]), axis=op.params["axes"]) if removed else 0
