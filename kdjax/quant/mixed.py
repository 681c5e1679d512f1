"""A precision for every leaf: what rounding each costs, and the best choice under a budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.quant.params import AxisRule, contraction_axes, convert_params, is_weight
from kdjax.quant.qtensor import dequantize, is_qtensor, quantize
from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Array, Params, Path, Select

PRECISIONS = ("float32", "bfloat16", "int8", "int4")


class Sensitivity(NamedTuple):
  """What one leaf costs in one precision.

  Attributes:
    path: names from the root, joined by "/".
    precision: int8, int4, float32, bfloat16 or float16.
    nbytes: of the leaf, scales included.
    increase: of the loss when this leaf alone is rounded, in the loss's unit; may be negative.
  """

  path: str
  precision: str
  nbytes: int
  increase: float


def measure_sensitivity(
  loss_fn: Callable[[Params], Array],
  params: Params,
  *,
  precisions: Sequence[str] = PRECISIONS,
  select: Select = is_weight,
  axis_rule: AxisRule = contraction_axes,
  group: int | None = None,
) -> list[Sensitivity]:
  r"""How much the loss grows when one leaf is rounded: $L(w_{-i}, Q(w_i)) - L(w)$.

  Args:
    loss_fn: `params -> scalar`, deterministic, such as the mean loss of some validation batches. It
      is compiled once and called for every leaf and precision, with floats: rounded weights, but no
      rounded activations.
    params: any pytree of float arrays.
    precisions: which to try; the first should be exact.
    select: as in `quantize_params`.
    axis_rule: as in `quantize_params`.
    group: as in `quantize_params`.

  Returns:
    Sensitivity of every selected leaf in every precision, in the tree's order.

  Raises:
    ValueError: for a precision that is neither int8, int4, float32, bfloat16 nor float16.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"a": jnp.array([[1.0], [0.01]]), "b": jnp.array([[1.0], [1.0]])}
    >>> loss_fn = lambda params: sum(jnp.sum((p - q) ** 2) for p, q in zip(
    ...   params.values(), ({"a": jnp.array([[1.0], [0.01]]), "b": jnp.ones([2, 1])}).values()))
    >>> found = measure_sensitivity(loss_fn, params, precisions=("float32", "int4"))
    >>> [(s.path, s.nbytes, round(s.increase, 4)) for s in found if s.precision == "int4"]
    [('a', 5, 0.0001), ('b', 5, 0.0)]

  Reference:
    Z. Dong et al., HAWQ, ICCV 2019, arXiv:1905.03696 (there by curvature; here measured).
  """
  loss_fn = jax.jit(loss_fn)
  whole = float(loss_fn(params))
  found = []
  for path, leaf in leaves_with_path(params, is_leaf=is_qtensor):
    if is_qtensor(leaf) or not select(path, leaf):
      continue
    name = "/".join(path)
    for precision in precisions:
      changed = mixed_params(params, {name: precision}, axis_rule=axis_rule, group=group)
      (rounded,) = [x for p, x in leaves_with_path(changed, is_leaf=is_qtensor) if p == path]
      floats = dequantize(rounded) if is_qtensor(rounded) else rounded
      tried = map_with_path(
        lambda p, x, path=path, floats=floats: floats.astype(x.dtype) if p == path else x, params
      )
      increase = float(loss_fn(tried)) - whole
      found.append(Sensitivity(name, precision, rounded.nbytes, increase))
  return found


def choose_precisions(
  found: Iterable[Sensitivity],
  *,
  max_bytes: int | None = None,
  max_increase: float | None = None,
) -> dict[str, str]:
  r"""The precision of every leaf that loses least within bytes, or takes fewest within a loss.

  $$\min_p \sum_i \Delta_i(p_i) \quad\text{with}\quad \sum_i \text{bytes}_i(p_i) \le B$$

  or the other way round. Increases add up, as if leaves were independent, and one below 0 counts as
  0: that is noise. Every leaf walks down the convex hull of its precisions; the step that costs
  least for a byte comes first, and what turns out not to be needed is taken back. At most one step
  of one leaf worse than the optimum over the hulls.

  Args:
    found: from `measure_sensitivity`.
    max_bytes: of all these leaves together.
    max_increase: of the loss.

  Returns:
    Precision by path.

  Raises:
    ValueError: unless exactly one limit is given; if `max_bytes` cannot be met: the error says how
      many there must be; if a number is NaN.

  Example:
    >>> found = [Sensitivity("a", "float32", 40, 0.0), Sensitivity("a", "int8", 10, 0.5),
    ...          Sensitivity("b", "float32", 40, 0.0), Sensitivity("b", "int8", 10, 0.1)]
    >>> choose_precisions(found, max_bytes=60)
    {'a': 'float32', 'b': 'int8'}
    >>> choose_precisions(found, max_increase=0.05)
    {'a': 'float32', 'b': 'float32'}

  Reference:
    Y. Shoham, A. Gersho, Efficient Bit Allocation for an Arbitrary Set of Quantizers, IEEE Trans.
    ASSP 36(9), 1988.
  """
  if (max_bytes is None) == (max_increase is None):
    raise ValueError("give either max_bytes or max_increase")
  options: dict[str, list[Sensitivity]] = {}
  for one in found:
    if one.increase != one.increase:
      raise ValueError(f"{one.path} in {one.precision}: the loss is NaN")
    options.setdefault(one.path, []).append(one._replace(increase=max(0.0, one.increase)))
  hulls = {path: _hull(choices) for path, choices in options.items()}
  at = dict.fromkeys(hulls, 0)

  def total(field: str) -> float:
    return sum(getattr(hulls[path][i], field) for path, i in at.items())

  # Slopes grow along a hull, so that this order never takes a step before the one above it.
  steps = sorted(
    (_slope(hull[i], hull[i + 1]), path, i + 1)
    for path, hull in hulls.items()
    for i in range(len(hull) - 1)
  )
  taken = []
  for _, path, i in steps:
    if max_bytes is not None and total("nbytes") <= max_bytes:
      break
    before = at[path]
    if before != i - 1:
      continue  # A step above it did not fit.
    at[path] = i
    if max_increase is not None and total("increase") > max_increase:
      at[path] = before
    else:
      taken.append((path, i))
  if max_bytes is not None:
    if total("nbytes") > max_bytes:
      raise ValueError(
        f"max_bytes={max_bytes}: the smallest precisions take {int(total('nbytes'))} bytes"
      )
    for path, i in sorted(taken, key=lambda step: -hulls[step[0]][step[1]].increase):
      spare = max_bytes - total("nbytes")
      if at[path] == i and hulls[path][i - 1].nbytes - hulls[path][i].nbytes <= spare:
        at[path] = i - 1
  return {path: hulls[path][i].precision for path, i in at.items()}


def mixed_params(
  params: Params,
  precisions: Mapping[str, str],
  *,
  axis_rule: AxisRule = contraction_axes,
  group: int | None = None,
) -> Params:
  """Every leaf in its own precision.

  Args:
    params: any pytree of float arrays.
    precisions: by path; leaves that are not named stay as they are.
    axis_rule: as in `quantize_params`.
    group: as in `quantize_params`.

  Returns:
    The tree, with `QTensor`s and floats of other types.

  Raises:
    ValueError: for a precision that is neither int8, int4 nor a float type, or a path that is none.

  Example:
    >>> import jax.numpy as jnp
    >>> mixed = mixed_params({"a": jnp.ones([4, 2]), "b": jnp.ones([4, 2])}, {"a": "int4"})
    >>> mixed["a"].values.dtype.name, mixed["b"].dtype.name
    ('int4', 'float32')
  """
  unknown = set(precisions) - {"/".join(path) for path, _ in leaves_with_path(params)}
  if unknown:
    raise ValueError(f"no leaf is called {sorted(unknown)}")

  def make(path: Path, leaf: Array, axis: tuple[int, ...], part: int | None) -> Any:
    precision = precisions["/".join(path)]
    if precision in ("int8", "int4"):
      return quantize(leaf, axis=axis, bits=int(precision[3:]), group=part)
    dtype = jnp.dtype(precision) if precision in _FLOATS else None
    if dtype is None:
      raise ValueError(f"{'/'.join(path)}: {precision!r} is none of int8, int4, {_FLOATS}")
    return leaf.astype(dtype)

  return convert_params(
    params,
    make,
    select=lambda path, leaf: "/".join(path) in precisions,
    axis_rule=axis_rule,
    group=group,
    rest=lambda leaf: leaf,
  )


_FLOATS = ("float32", "bfloat16", "float16")


def _slope(larger: Sensitivity, smaller: Sensitivity) -> float:
  return (smaller.increase - larger.increase) / (larger.nbytes - smaller.nbytes)


def _hull(choices: list[Sensitivity]) -> list[Sensitivity]:
  """The lower convex hull from the most bytes to the fewest, the loss growing."""
  # Of equal bytes only the best; of equal loss only the smallest.
  hull: list[Sensitivity] = []
  for one in sorted(choices, key=lambda s: (s.increase, s.nbytes)):
    if hull and one.nbytes >= hull[-1].nbytes:
      continue
    while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], one):
      hull.pop()
    hull.append(one)
  return hull
