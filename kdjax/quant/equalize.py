"""Factors between activations and weights that make both easier to round: SmoothQuant, AWQ."""

import jax
import jax.numpy as jnp

from kdjax.quant.calibrate import AbsMax, Histogram, percentile_scale
from kdjax.quant.integer import LEVELS, TINY
from kdjax.quant.params import is_weight
from kdjax.quant.qtensor import QTensor, dequantize, is_qtensor, quantize
from kdjax.traced import Observed
from kdjax.tree import map_with_path
from kdjax.types import Array, Params, Select


def smooth_quant(
  params: Params,
  observed: Params,
  *,
  select: Select = is_weight,
  strength: float = 0.5,
  bits: int = 8,
) -> Params:
  r"""Moves outliers of activations into the weights, where a scale a channel bears them better.

  $$X W = (X \,\mathrm{diag}(f)^{-1}) (\mathrm{diag}(f) W), \qquad
  f_k = \max |X_k|^\alpha / \max |W_k|^{1 - \alpha}$$

  The right factor is quantised; $1 / f$ stands beside it as `input_factor`, and is multiplied while
  activations are quantised. No layer before it must be able to absorb it, and every weight has its
  own.

  Args:
    params: any pytree of float arrays; `QTensor` leaves are kept.
    observed: from `kdjax.traced.observe_inputs` with `statistic=lambda rows: absmax(rows, axis=0)`;
      those of several batches are merged.
    select: which leaves. Those without observed inputs stay as they are: give the result to
      `quantize_params`.
    strength: $\alpha$ in [0, 1]: 0 evens out the weights only, 1 the activations only.
    bits: as in `quantize`.

  Returns:
    The tree with `QTensor` leaves.

  Raises:
    ValueError: if `strength` lies outside [0, 1], or the statistics are of another kind.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.quant import absmax
    >>> from kdjax.traced import observe_inputs
    >>> params, x = {"kernel": jnp.ones([2, 3])}, jnp.array([[100.0, 1.0]])
    >>> columns = lambda rows: absmax(rows, axis=0)
    >>> seen = observe_inputs(lambda p, x: x @ p["kernel"], params, x, statistic=columns)
    >>> [round(float(r), 3) for r in smooth_quant(params, seen)["kernel"].input_factor[:, 0]]
    [0.1, 1.0]

  Reference:
    G. Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    Language Models, ICML 2023, arXiv:2211.10438 (there folded into the layer before, hence one
    factor for all weights that share an input).
  """
  if not 0 <= strength <= 1:
    raise ValueError(f"strength must lie in [0, 1], got {strength}")

  def smooth(path, weights, seen: Observed | None):
    if seen is None or is_qtensor(weights) or not select(path, weights):
      return weights
    if not isinstance(seen.value, AbsMax):
      raise ValueError("smooth_quant needs observe_inputs(statistic=lambda x: absmax(x, axis=0))")
    other = tuple(axis for axis in range(weights.ndim) if axis not in seen.axes)
    size = jnp.max(jnp.abs(weights.astype(jnp.float32)), axis=other, keepdims=True)
    inputs = seen.value.value.reshape(size.shape)
    factor = inputs**strength / jnp.maximum(size, TINY) ** (1 - strength)
    # What never speaks, or is never listened to, stays as it is.
    return _scaled(weights, jnp.where((inputs > 0) & (size > 0), factor, 1.0), seen.axes, bits)

  return map_with_path(smooth, params, observed, is_leaf=is_qtensor)


def awq(
  params: Params,
  observed: Params,
  *,
  select: Select = is_weight,
  bits: int = 4,
  group: int | None = None,
  affine: bool = False,
  steps: int = 20,
) -> Params:
  r"""Rounds the weights of strong inputs on a finer grid than the others.

  $$f_k = \mathrm{rms}(X_k)^\alpha, \qquad \alpha = \arg\min_{i / n,\ 0 \le i < n}
  \lVert X (W - \mathrm{diag}(f)^{-1} Q(\mathrm{diag}(f) W)) \rVert^2$$

  with f divided by $\sqrt{\max f \min f}$. The error is exact for the observed inputs, from their
  second moments. $\alpha = 0$ is rounding to nearest, hence it is never worse there.

  Args:
    params: any pytree of float arrays; `QTensor` leaves are kept.
    observed: from `kdjax.traced.observe_inputs` with `moments`, of one batch or the sum of several.
    select: as in `smooth_quant`.
    bits: as in `quantize`.
    group: as in `quantize`; weights that it does not divide, or that are contracted over several
      axes, keep one scale a channel.
    affine: as in `quantize`.
    steps: n, how many strengths are tried.

  Returns:
    The tree with `QTensor` leaves that have an `input_factor`.

  Raises:
    ValueError: as `quantize`, or if `steps` < 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from kdjax.traced import observe_inputs
    >>> params = {"kernel": jax.random.normal(jax.random.key(1), (4, 8))}
    >>> x = jax.random.normal(jax.random.key(0), (9, 4)) * jnp.array([[30.0, 1.0, 1.0, 1.0]])
    >>> apply_fn = lambda params, x: x @ jnp.asarray(params["kernel"])
    >>> better = awq(params, observe_inputs(apply_fn, params, x))
    >>> nearest = {"kernel": quantize(params["kernel"], axis=0, bits=4)}
    >>> errors = [jnp.abs(apply_fn(p, x) - apply_fn(params, x)).mean() for p in (better, nearest)]
    >>> bool(errors[0] < 0.7 * errors[1])
    True

  Reference:
    J. Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration,
    MLSys 2024, arXiv:2306.00978 (there the mean magnitude of inputs, here their root mean square;
    no search for clipping, see `search_scale`).
  """
  if steps < 1:
    raise ValueError(f"steps must be at least 1, got {steps}")

  def search(path, weights, seen: Observed | None):
    if seen is None or is_qtensor(weights) or not select(path, weights):
      return weights
    axes, shape = seen.axes, [n if i in seen.axes else 1 for i, n in enumerate(weights.shape)]
    divides = group is not None and len(axes) == 1 and weights.shape[axes[0]] % group == 0
    part = group if divides else None
    rms = jnp.maximum(seen.value.norms(), TINY)

    def scaled(strength: Array) -> QTensor:
      logs = strength * jnp.log(rms)
      factor = jnp.exp(logs - (jnp.max(logs) + jnp.min(logs)) / 2)
      return _scaled(weights, factor.reshape(shape), axes, bits, part, affine)

    def error(strength: Array) -> Array:
      lost = weights.astype(jnp.float32) - dequantize(scaled(strength))
      rows = jnp.moveaxis(lost, axes, range(len(axes))).reshape(len(rms), -1)
      return jnp.einsum("kn,kl,ln->", rows, seen.value.total, rows, precision="highest")

    strengths = jnp.arange(steps) / steps
    return scaled(strengths[jnp.argmin(jax.lax.map(error, strengths))])

  return map_with_path(search, params, observed, is_leaf=is_qtensor)


def with_input_scales(params: Params, observed: Params, *, scale_fn=percentile_scale) -> Params:
  r"""Static scales of activations for quantised weights, from what was observed.

  Products then skip looking for the largest entry of every row, as hardware with fixed ranges
  needs; what lies beyond $127 s$ is clipped. A scale a row is more exact.

  Args:
    params: a tree with `QTensor` leaves.
    observed: from `kdjax.traced.observe_inputs`, of the float params, with `statistic=histogram` or
      `statistic=lambda rows: absmax(rows, axis=0)`, merged over batches. Weights with an
      `input_factor` need the latter.
    scale_fn: `Histogram -> scale`: `percentile_scale`, `mse_scale`, `entropy_scale`.

  Returns:
    The tree; `QTensor`s with observed inputs have an `input_scale`.

  Raises:
    ValueError: if a weight with factors comes with a histogram, or the statistic is neither.

  Example:
    >>> import jax.numpy as jnp
    >>> from kdjax.quant import histogram, quantize_params
    >>> from kdjax.traced import observe_inputs
    >>> params, x = {"kernel": jnp.ones([2, 3])}, jnp.array([[1.0, -12.7]])
    >>> seen = observe_inputs(lambda p, x: x @ p["kernel"], params, x, statistic=histogram)
    >>> fixed = with_input_scales(quantize_params(params), seen)
    >>> round(float(fixed["kernel"].input_scale), 3)
    0.1

  Reference:
    H. Wu et al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602.
  """

  def fix(path, leaf, seen: Observed | None):
    if seen is None or not is_qtensor(leaf):
      return leaf
    if isinstance(seen.value, AbsMax):
      largest = seen.value.value.reshape(-1)
      if leaf.input_factor is not None:
        largest = largest * leaf.input_factor.reshape(-1)
      return leaf.replace(input_scale=jnp.maximum(jnp.max(largest) / LEVELS, TINY))
    if not isinstance(seen.value, Histogram) or leaf.input_factor is not None:
      raise ValueError(
        f"{'/'.join(path)}: a weight {'with' if leaf.input_factor is not None else 'without'} "
        "input_factor needs absmax(rows, axis=0) of its inputs, or, without factor, a histogram"
      )
    return leaf.replace(input_scale=scale_fn(seen.value))

  return map_with_path(fix, params, observed, is_leaf=is_qtensor)


def _scaled(
  weights: Array,
  factor: Array,
  axes: tuple[int, ...],
  bits: int,
  group: int | None = None,
  affine: bool = False,
) -> QTensor:
  """`weights * factor` quantised, with the factor's inverse beside it."""
  q = quantize(weights * factor, axis=axes, bits=bits, group=group, affine=affine)
  return q.replace(input_factor=1 / factor)
