"""Rounding that looks at what goes into a weight: GPTQ, and biases that make up for the mean."""

import jax.numpy as jnp

from kdjax.quant.integer import levels_of, spread
from kdjax.quant.params import is_weight
from kdjax.quant.qtensor import QTensor, dequantize, is_qtensor, quantize
from kdjax.reconstruct import on_matrix, reconstruct
from kdjax.traced import Observed
from kdjax.tree import map_with_path
from kdjax.types import Array, Params, Select


def gptq(
  params: Params,
  observed: Params,
  *,
  select: Select = is_weight,
  bits: int = 8,
  group: int | None = None,
  affine: bool = False,
  ordered: bool = True,
  block: int = 128,
  damping: float = 0.01,
) -> Params:
  r"""Rounds weights one input after the other, while those of later inputs make up for it.

  Scales are those of `quantize`; then the rows of every weight are rounded in turn, and the error
  of each goes into the rows that follow, so that $\lVert X W - X \hat W \rVert^2$ stays small (see
  `kdjax.reconstruct`). The scale is shared over the axes that the observed product contracts.

  Args:
    params: any pytree of float arrays; `QTensor` leaves are kept.
    observed: from `kdjax.traced.observe_inputs` with `moments`, of one batch or the sum of several.
    select: which leaves. Those without observed inputs (tables that are looked up, convolutions)
      stay as they are: give the result to `quantize_params`, which rounds them to nearest.
    bits: as in `quantize`.
    group: as in `quantize`; its scales are those of the weights before any correction. Weights that
      it does not divide, or that are contracted over several axes, keep one scale a channel.
    affine: as in `quantize`.
    ordered: whether inputs with the largest second moments are rounded first, while there is most
      left to make up for them.
    block: inputs that are corrected one by one before the rest follows.
    damping: as in `kdjax.reconstruct.reconstruct`.

  Returns:
    The tree with `QTensor` leaves.

  Raises:
    ValueError: as `quantize`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from kdjax.traced import observe_inputs
    >>> params, x = {"kernel": jnp.ones([4, 2])}, jax.random.normal(jax.random.key(0), (9, 4))
    >>> seen = observe_inputs(lambda params, x: x @ params["kernel"], params, x)
    >>> gptq(params, seen, bits=4)["kernel"].values.dtype.name
    'int4'

  Reference:
    E. Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers, ICLR 2023, arXiv:2210.17323 (groups and order as in their code's static groups).
  """

  def solve(path, weights, seen: Observed | None):
    if seen is None or is_qtensor(weights) or not select(path, weights):
      return weights
    axes = seen.axes
    divides = group is not None and len(axes) == 1 and weights.shape[axes[0]] % group == 0
    part = group if divides else None
    nearest = quantize(weights, axis=axes, bits=bits, group=part, affine=affine)
    rounded = _correct(weights, nearest, seen, ordered, block, damping)
    return quantize(
      rounded, axis=axes, scale=nearest.scale, zero=nearest.zero, bits=bits, group=part
    )

  return map_with_path(solve, params, observed, is_leaf=is_qtensor)


def correct_biases(
  params: Params, quantized: Params, observed: Params, *, bias: str = "bias"
) -> Params:
  r"""Biases that take back what rounding does to the mean: $b + \bar x (W - \hat W)$.

  Args:
    params: nested dicts, before quantization.
    quantized: the same after it, such as by `quantize_params`.
    observed: as in `gptq`.
    bias: what the bias beside a weight is called.

  Returns:
    `quantized` with other biases; weights without one, or without observed inputs, change nothing.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.quant import quantize_params
    >>> from kdjax.traced import observe_inputs
    >>> params = {"kernel": jnp.array([[0.301], [1.0]]), "bias": jnp.zeros([1])}
    >>> apply_fn = lambda params, x: x @ jnp.asarray(params["kernel"]) + params["bias"][None]
    >>> x = jnp.array([[2.0, 0.0], [4.0, 0.0]])
    >>> rounded = quantize_params(params, bits=4)
    >>> better = correct_biases(params, rounded, observe_inputs(apply_fn, params, x))
    >>> [round(float((apply_fn(p, x) - apply_fn(params, x)).mean()), 3) for p in (rounded, better)]
    [-0.046, 0.0]

  Reference:
    M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
    2019, arXiv:1906.04721 (here with means from data).
  """
  if not isinstance(quantized, dict):
    return quantized
  new = {
    name: correct_biases(params[name], child, observed[name], bias=bias)
    if isinstance(child, dict)
    else child
    for name, child in quantized.items()
  }
  for name, child in quantized.items():
    seen = observed[name]
    if is_qtensor(child) and isinstance(seen, Observed) and bias in new:
      change = jnp.tensordot(
        seen.value.means().reshape([child.shape[a] for a in seen.axes]),
        jnp.asarray(params[name], jnp.float32) - dequantize(child),
        axes=(tuple(range(len(seen.axes))), seen.axes),
      )
      if change.shape == new[bias].shape:
        new[bias] = (new[bias] + change).astype(new[bias].dtype)
  return new


def _correct(
  weights: Array, nearest: QTensor, seen: Observed, ordered: bool, block: int, damping: float
) -> Array:
  """The weights rounded in turn, to multiples of the scales of `nearest`."""
  total = seen.value.total
  order = jnp.argsort(-jnp.diagonal(total)) if ordered else jnp.arange(total.shape[0])
  back = jnp.argsort(order)
  scale = jnp.broadcast_to(spread(nearest.scale, weights.shape), weights.shape)
  zero = jnp.zeros_like(scale)
  if nearest.zero is not None:
    zero = jnp.broadcast_to(spread(nearest.zero, weights.shape), weights.shape).astype(jnp.float32)
  levels = levels_of(nearest.bits)
  low = jnp.full(weights.shape, -levels - (nearest.zero is not None), jnp.float32)

  def solve(*matrices: Array) -> Array:
    w, *rows = (m[order] for m in matrices)
    rounded = reconstruct(
      w, total[order][:, order], _nearest, _keep, tuple(rows), block=block, damping=damping
    )
    return rounded[back]

  high = jnp.full(weights.shape, float(levels))
  return on_matrix(solve, (weights, scale, zero, low, high), seen.axes)


def _keep(weights: Array, diagonal: Array, rows):
  del weights, diagonal
  return rows


def _nearest(k, weights: Array, diagonal: Array, rows):
  """Row k of the block, rounded with its own scales."""
  del diagonal
  scale, zero, low, high = (row[k] for row in rows)
  values = jnp.clip(jnp.round(weights[k] / scale) + zero, low, high)
  return (values - zero) * scale, rows
