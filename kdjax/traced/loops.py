"""Loops and branches: their bodies' axes, what stays of masked units, and how they run resized."""

from collections.abc import Callable
from typing import Any

import jax

from kdjax.traced.extents import Extent, atoms, fix, tie
from kdjax.traced.program import Operation, Program, Value, build
from kdjax.traced.rule import ALIKE

Fills = dict[Value, dict[Extent, Any]]
Run = Callable[[Program, list[Any]], list[Any]]


def _tie_values(left: list[Value], right: list[Value]) -> None:
  for a, b in zip(left, right, strict=True):
    for axis, other in zip(a.axes, b.axes, strict=True):
      tie(axis, other)


def _like(value: Value, axes: list[Extent]) -> Value:
  return Value(tuple(axis.size for axis in axes), value.dtype, list(axes))


def _scan_counts(op: Operation) -> tuple[int, int]:
  """How many operands are constants, and how many values are carried.

  Told by ranks, since the parameters that say so have changed: what is scanned has an axis more
  than the body sees.
  """
  jaxpr = op.params["jaxpr"].jaxpr
  whole = sum(
    len(v.shape) == len(inner.aval.shape) for v, inner in zip(op.ins, jaxpr.invars, strict=True)
  )
  carry = sum(
    len(v.shape) == len(inner.aval.shape) for v, inner in zip(op.outs, jaxpr.outvars, strict=True)
  )
  return whole - carry, carry


def _tie_scan(op: Operation, ties) -> None:
  consts, carry = op.notes = _scan_counts(op)
  kept = consts + carry
  for value in op.ins[kept:] + op.outs[carry:]:
    fix(value.axes[0], "scanned over")
  ins = [_like(v, v.axes if i < kept else v.axes[1:]) for i, v in enumerate(op.ins)]
  body = build(op.params["jaxpr"], ties, ins)
  op.bodies = [body]
  _tie_values(body.outs[:carry], ins[consts:kept])
  _tie_values(body.outs[:carry], op.outs[:carry])
  _tie_values(body.outs[carry:], [_like(v, v.axes[1:]) for v in op.outs[carry:]])


def _flow_scan(op: Operation, fills: Fills, flow, check: bool) -> None:
  consts, carry = op.notes
  (body,) = op.bodies
  for inner, outer in zip(body.ins, op.ins, strict=True):
    fills[inner] = _known(fills, outer, inner)
  _settle(body, body.ins[consts : consts + carry], body.outs[:carry], fills, flow)
  flow(body, fills, check=check)
  for out, inner in zip(op.outs, body.outs, strict=True):
    fills[out] = dict(_known(fills, inner, inner))


def _run_scan(op: Operation, ins: list[Any], run: Run) -> list[Any]:
  consts, carry = op.notes

  def step(state, xs):
    outs = run(op.bodies[0], [*ins[:consts], *state, *xs])
    return tuple(outs[:carry]), tuple(outs[carry:])

  state, ys = jax.lax.scan(
    step,
    tuple(ins[consts : consts + carry]),
    tuple(ins[consts + carry :]),
    length=op.params["length"],
    reverse=op.params["reverse"],
    unroll=op.params["unroll"],
  )
  return [*state, *ys]


def _tie_while(op: Operation, ties) -> None:
  first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
  ins = [_like(v, v.axes) for v in op.ins]
  state = ins[first + second :]
  condition = build(op.params["cond_jaxpr"], ties, ins[:first] + state)
  body = build(op.params["body_jaxpr"], ties, ins[first:])
  op.bodies = [condition, body]
  _tie_values(body.outs, state)
  _tie_values(op.outs, state)


def _flow_while(op: Operation, fills: Fills, flow, check: bool) -> None:
  condition, body = op.bodies
  first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
  inner = [*condition.ins[:first], *body.ins]
  for value, outer in zip(inner, op.ins, strict=True):
    fills[value] = _known(fills, outer, value)
  _settle(body, body.ins[second:], body.outs, fills, flow)
  flow(condition, fills, check=check)
  flow(body, fills, check=check)
  for out, value in zip(op.outs, body.ins[second:], strict=True):
    fills[out] = dict(fills[value])


def _run_while(op: Operation, ins: list[Any], run: Run) -> list[Any]:
  first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
  condition, body = op.bodies
  return list(
    jax.lax.while_loop(
      lambda state: run(condition, [*ins[:first], *state])[0],
      lambda state: tuple(run(body, [*ins[first : first + second], *state])),
      tuple(ins[first + second :]),
    )
  )


def _tie_cond(op: Operation, ties) -> None:
  op.bodies = [
    build(branch, ties, [_like(v, v.axes) for v in op.ins[1:]]) for branch in op.params["branches"]
  ]
  for body in op.bodies:
    _tie_values(body.outs, op.outs)


def _flow_cond(op: Operation, fills: Fills, flow, check: bool) -> None:
  for body in op.bodies:
    for inner, outer in zip(body.ins, op.ins[1:], strict=True):
      fills[inner] = _known(fills, outer, inner)
    flow(body, fills, check=check)
  for i, out in enumerate(op.outs):
    first, *others = (_known(fills, body.outs[i], body.outs[i]) for body in op.bodies)
    for other in others:
      first = _common(first, other)
    fills[out] = first


def _run_cond(op: Operation, ins: list[Any], run: Run) -> list[Any]:
  index, *operands = ins
  branches = [lambda *args, body=body: run(body, list(args)) for body in op.bodies]
  return jax.lax.switch(index, branches, *operands)


def _known(fills: Fills, source: Value, target: Value) -> dict[Extent, Any]:
  """What is known of one value, for another that has (some of) its axes."""
  here = {atom for axis in target.axes for atom in atoms(axis)}
  if source.uniform is not None:
    return dict.fromkeys(here, source.uniform)
  found = fills.get(source, {})
  # Only numbers pass: what is ALIKE is made by operations of its own program.
  return {atom: found[atom] for atom in here if found.get(atom, ALIKE) is not ALIKE}


def _common(a: dict[Extent, Any], b: dict[Extent, Any]) -> dict[Extent, Any]:
  return {atom: number for atom, number in a.items() if atom in b and b[atom] == number}


def _settle(body: Program, before: list[Value], after: list[Value], fills: Fills, flow) -> None:
  """Goes round until what is known of the carried values stays known."""
  while True:
    flow(body, fills, check=False)
    news = [_common(fills[a], _known(fills, b, b)) for a, b in zip(before, after, strict=True)]
    if all(len(new) == len(fills[a]) for new, a in zip(news, before, strict=True)):
      return
    fills.update(zip(before, news, strict=True))


LOOPS = {"scan": _tie_scan, "while": _tie_while, "cond": _tie_cond}
FLOWS = {"scan": _flow_scan, "while": _flow_while, "cond": _flow_cond}
RUNS = {"scan": _run_scan, "while": _run_while, "cond": _run_cond}
