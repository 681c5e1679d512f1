"""Training through the integers that are served: straight-through weights, learned scales."""

import math
from typing import Any

import jax.numpy as jnp

from kdjax.quant.integer import learned_round, levels_of, pass_gradient, seen_inputs, spread
from kdjax.quant.params import AxisRule, contraction_axes, convert_params, is_weight
from kdjax.quant.qtensor import QTensor, dequantize, fake_quant, is_qtensor, quantize
from kdjax.types import Array, FactoredLogits, Params, Path, Select


def straight_through(
  w: Array,
  *,
  axis: int | tuple[int, ...] | None,
  scale: Array | None = None,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
) -> QTensor:
  r"""`quantize(w)` that can be trained: products with it are those that are served.

  Forwards $v = \mathrm{clip}(\mathrm{round}(w / s), -l, l)$ is multiplied in integers. The gradient
  of the weight $s v$ passes straight to `w`. With a given `scale` it is 0 where that clips, and the
  scale learns by

  $$\frac{\partial s v}{\partial s} = \begin{cases} \mathrm{round}(w/s) - w/s & |w/s| \le l \\
  \pm l & \text{else} \end{cases}$$

  times $1 / \sqrt{n l}$ for the n weights that share it.

  Args:
    w: float `[...]`.
    axis: as in `quantize`.
    scale: as in `quantize`; None for the range of `w`, which then follows it.
    bits: as in `quantize`.
    group: as in `quantize`.
    affine: as in `quantize`.

  Returns:
    QTensor with a `shadow`. Make it inside of the loss, where `w` and `scale` are differentiated.

  Raises:
    ValueError: as `quantize`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from kdjax.quant import dot
    >>> x, w = jnp.array([[127.0, -127.0]]), jnp.array([[0.3], [0.7]])
    >>> loss = lambda w: dot(x, straight_through(w, axis=0)).sum()
    >>> jax.grad(loss)(w).tolist()
    [[127.0], [-127.0]]

  Reference:
    B. Jacob et al., 2018, arXiv:1712.05877, section 3; S. Esser et al., Learned Step Size
    Quantization, ICLR 2020, arXiv:1902.08153.
  """
  q = quantize(w, axis=axis, scale=scale, bits=bits, group=group, affine=affine)
  if scale is None:
    shadow = fake_quant(w, axis=axis, bits=bits, group=group, affine=affine)
    return q.replace(shadow=shadow.astype(jnp.float32))
  levels = levels_of(bits)
  shared = w.size // max(1, q.scale.size)
  steps = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), q.scale.shape)
  # The value stays, the gradient is scaled.
  steps = pass_gradient(steps / math.sqrt(shared * levels), steps)
  shadow = learned_round(jnp.asarray(w, jnp.float32), spread(steps, w.shape), levels)
  return q.replace(shadow=shadow)


def first_scales(
  params: Params,
  *,
  select: Select = is_weight,
  axis_rule: AxisRule = contraction_axes,
  bits: int = 8,
) -> Params:
  r"""Scales to start learning from: $2\,\overline{|w|} / \sqrt{l}$ over each contraction.

  Args:
    params: any pytree of arrays.
    select: as in `quantize_params`.
    axis_rule: as in `quantize_params`.
    bits: as in `quantize_params`.

  Returns:
    The tree of params with float32 scales in place of what is selected, None elsewhere: train it
    with the params, and give it to `straight_through_params`.

  Example:
    >>> import jax.numpy as jnp
    >>> scales = first_scales({"kernel": jnp.full([4, 2], 7.0), "bias": jnp.ones([2])}, bits=4)
    >>> [round(float(s), 3) for s in scales["kernel"][0]], scales["bias"]
    ([5.292, 5.292], None)

  Reference:
    S. Esser et al., 2020, arXiv:1902.08153, section 2.1.
  """

  def scale_of(path: Path, leaf: Any, axis: tuple[int, ...], group: int | None) -> Array:
    del path, group
    mean = jnp.mean(jnp.abs(leaf.astype(jnp.float32)), axis=axis, keepdims=True)
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.maximum(2 * mean / math.sqrt(levels_of(bits)), tiny)

  return convert_params(
    params, scale_of, select=select, axis_rule=axis_rule, rest=lambda leaf: None
  )


def straight_through_params(
  params: Params,
  scales: Params | None = None,
  *,
  select: Select = is_weight,
  axis_rule: AxisRule = contraction_axes,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
) -> Params:
  """`quantize_params` that can be trained: call it on the params inside of the loss.

  `apply(straight_through_params(params), batch)` computes what `apply(quantize_params(params),
  batch)` will serve, and its gradient goes to the float params. Any apply that takes `QTensor`s
  does, stock Linen layers included (in floats there). It is a function of params like any other:
  the same optax chain may prune them, the same objective distil.

  Args:
    params: any pytree of arrays.
    scales: learned ones, from `first_scales` with the same options; None for those of the ranges.
    select: as in `quantize_params`.
    axis_rule: as in `quantize_params`.
    bits: as in `quantize_params`.
    group: as in `quantize_params`; without `scales` only.
    affine: as in `quantize_params`; without `scales` only.

  Returns:
    The tree with `QTensor` leaves that hold a shadow.

  Raises:
    ValueError: as `quantize`; if `scales` come with `group` or `affine`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from kdjax.quant import dot
    >>> params, x = {"kernel": jnp.array([[0.3], [0.7]])}, jnp.array([[127.0, -127.0]])
    >>> apply_fn = lambda params, x: dot(x, params["kernel"]).sum()
    >>> jax.grad(lambda params: apply_fn(straight_through_params(params), x))(params)
    {'kernel': Array([[ 127.],
           [-127.]], dtype=float32)}

  Reference:
    As `straight_through`.
  """
  if scales is not None and (group is not None or affine):
    raise ValueError("learned scales are symmetric, one a channel: leave out group and affine")

  def make(path: Path, leaf: Array, axis: tuple[int, ...], part: int | None, scale: Any = None):
    del path
    return straight_through(leaf, axis=axis, scale=scale, bits=bits, group=part, affine=affine)

  rest = () if scales is None else (scales,)
  return convert_params(
    params, make, *rest, select=select, axis_rule=axis_rule, group=group, rest=lambda leaf: leaf
  )


def as_served(logits: Any) -> Any:
  """Catalogue logits over a `QTensor` as float factors with the same products, for losses.

  Losses over whole catalogues work on floats, block by block. The query becomes the rounded query
  that integers multiply, the table its rows; the gradient passes through both. So it is for any
  number of queries, though `dot_plan` may serve many of them in float: what is trained must bear
  the rounding that few of them get.

  Args:
    logits: `FactoredLogits`, or anything else, which is returned as it is.

  Returns:
    FactoredLogits with a float table; `dense()` equals that of `logits` up to float32 rounding
    where integers are multiplied. With groups along the contraction queries stay as they are.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.types import FactoredLogits
    >>> table = quantize(jnp.array([[0.3, 0.7], [0.5, -0.1]]), axis=-1)
    >>> logits = FactoredLogits(jnp.array([[1.0, 0.45], [2.0, 0.1]]), table)
    >>> as_served(logits).query.round(4)
    Array([[1.    , 0.4488],
           [2.    , 0.0945]], dtype=float32)
  """
  if not isinstance(logits, FactoredLogits) or not is_qtensor(logits.table):
    return logits
  query, table = logits.query.astype(jnp.float32), logits.table
  if table.input_factor is not None:
    query = query * table.input_factor.reshape((1,) * (query.ndim - 1) + (-1,))
  if table.scale.shape[-1] == 1:
    query = seen_inputs(query, table.input_scale, axis=-1)
  return FactoredLogits(query, dequantize(table.replace(input_factor=None)), logits.bias)
