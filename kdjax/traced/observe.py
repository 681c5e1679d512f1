"""What goes into the weights of any function: statistics of the inputs of its products."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.traced.follow import follow
from kdjax.traced.program import Operation, Program, Value
from kdjax.traced.replay import run
from kdjax.traced.rules import SAME
from kdjax.types import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
  """A statistic of the rows that a weight is multiplied with, and how they lie.

  Attributes:
    value: what the statistic made of rows `[n, K]`.
    axes: of the weight, those that are contracted, ascending; K is the product of their sizes.
  """

  value: Any
  axes: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class Moments(NamedTuple):
  """Second moments of rows. Those of several batches are added: they are sums.

  Attributes:
    total: float32 `[K, K]`, the sum of the outer products of the rows: $X^T X$.
    sums: float32 `[K]`, the sum of the rows.
    count: float32 `[]`, how many rows.
  """

  total: Array
  sums: Array
  count: Array  # type: ignore[assignment]

  def norms(self) -> Array:
    r"""float32 `[K]`: $\lVert X_k \rVert_2 / \sqrt{n}$, the root mean square of every input."""
    return jnp.sqrt(jnp.diagonal(self.total) / jnp.maximum(self.count, 1))

  def means(self) -> Array:
    """float32 `[K]`: the mean of every input."""
    return self.sums / jnp.maximum(self.count, 1)


def moments(rows: Array) -> Moments:
  """Second moments of one batch: `rows` float `[n, K]`."""
  rows = rows.astype(jnp.float32)
  total = jnp.einsum("nk,nl->kl", rows, rows, precision="highest")
  return Moments(total, jnp.sum(rows, axis=0), jnp.float32(rows.shape[0]))


def observe_inputs(
  apply_fn: Callable[..., Any],
  params: Params,
  *args: Any,
  statistic: Callable[[Array], Any] = moments,
) -> Params:
  """A statistic of what every weight is multiplied with, in any function; no hooks needed.

  The function is traced and run once; works under `jit`. The moments of several batches are
  added: `jax.tree.map(jnp.add, a, b)`.

  Args:
    apply_fn: `apply_fn(params, *args)`, any function that JAX can trace.
    params: any pytree of float arrays.
    args: further arguments, such as a batch.
    statistic: of `[n, K]`, the n rows that a weight is contracted with over its K inputs: a kernel
      `[K, out]` over its first axis, attention's `[heads, head_dim, out]` over two, flattened in
      the order of the weight's axes. A weight that is used several times gets all rows at once.

  Returns:
    The tree of params with `Observed` in place of every weight of a product, None in place of
    every other leaf: biases, tables that are only looked up, kernels of convolutions, weights used
    inside of loops or with a batch axis of their own.

  Raises:
    ValueError: if one weight is contracted over different axes in different places.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones([2, 3]), "bias": jnp.zeros([3])}
    >>> apply_fn = lambda params, x: x @ params["kernel"] + params["bias"][None]
    >>> seen = observe_inputs(apply_fn, params, jnp.array([[1.0, 2.0]]))
    >>> seen["kernel"].value.total.tolist(), seen["kernel"].axes, seen["bias"]
    ([[1.0, 2.0], [2.0, 4.0]], (0,), None)
  """
  traced = follow(apply_fn, params, args)
  origins = _origins(traced.program, [value for _, value in traced.leaves])
  rows: dict[Value, list[Array]] = {}
  axes: dict[Value, tuple[int, ...]] = {}

  def watch(op: Operation, ins: list[Any]) -> None:
    if op.name != "dot_general":
      return
    sums, batches = op.params["dimension_numbers"]
    for side, other in ((0, 1), (1, 0)):
      leaf, places = origins.get(op.ins[side], (None, ()))
      if leaf is None or batches[side]:
        continue
      # In the order in which the weight has them.
      pairs = sorted((places[i], j) for i, j in zip(sums[side], sums[other], strict=True))
      own, contracted = zip(*pairs, strict=True) if pairs else ((), ())
      if axes.setdefault(leaf, own) != own:
        raise ValueError(
          f"a weight of shape {leaf.shape} is contracted over {axes[leaf]} and {own}"
        )
      free = [axis for axis in range(ins[other].ndim) if axis not in contracted]
      width = math.prod(leaf.shape[axis] for axis in own)
      rows.setdefault(leaf, []).append(
        jnp.transpose(ins[other], (*free, *contracted)).reshape(-1, width)
      )

  flat = jax.tree.leaves((params, args))
  run(traced.program, flat, lambda extent: extent.size, traced.fills, watch=watch)
  found = [
    Observed(statistic(jnp.concatenate(rows[value])), axes[value]) if value in rows else None
    for _, value in traced.leaves
  ]
  return jax.tree.unflatten(jax.tree.structure(params), found)


def _origins(program: Program, leaves: list[Value]) -> dict[Value, tuple[Value, tuple[int, ...]]]:
  """The param that a value is, and which axis of the param each of its axes is."""
  found = {leaf: (leaf, tuple(range(len(leaf.shape)))) for leaf in leaves}
  for op in program.operations:
    if op.name in SAME or op.name == "convert_element_type":
      found |= {
        out: found[value] for value, out in zip(op.ins, op.outs, strict=True) if value in found
      }
    elif op.name == "transpose" and op.ins[0] in found:
      leaf, places = found[op.ins[0]]
      found[op.outs[0]] = leaf, tuple(places[i] for i in op.params["permutation"])
  return found
