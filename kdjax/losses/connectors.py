"""Learned parts between a student's features and its teacher's, as pairs of pure functions.

They hold no batch normalisation, which would need a state: a deviation from the published blocks.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdjax.losses.features import Helper, projector
from kdjax.types import Array, Params


def variational_regressor(
  student_dim: int,
  teacher_dim: int,
  *,
  hidden_dim: int | None = None,
  variance: float = 5.0,
  min_variance: float = 1e-5,
) -> Helper:
  r"""The Gaussian of `variational_loss`: a mean from the student's features, a variance a channel.

  $$\mu(h) = r_3(\mathrm{relu}(r_2(\mathrm{relu}(r_1(h))))), \quad
  \sigma^2_c = \log(1 + e^{a_c}) + \epsilon$$

  Args:
    student_dim: > 0, the last axis of the student's features.
    teacher_dim: > 0, the last axis of the teacher's.
    hidden_dim: > 0, the width between the affine maps r; None for `teacher_dim`.
    variance: what every sigma**2 starts at; above `min_variance`.
    min_variance: epsilon > 0.

  Returns:
    Helper; `apply(params, student_features)` gives the pair of mean `[..., d]` and variance `[d]`.

  Raises:
    ValueError: if a width or `min_variance` is not positive, or `variance` not above it.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = variational_regressor(4, 6)
    >>> params = helper.init(jax.random.key(0))
    >>> mean, variance = helper.apply(params, jnp.ones([2, 4]))
    >>> mean.shape, round(float(variance[0]), 4)
    ((2, 6), 5.0)

  Reference:
    Ahn et al., Variational Information Distillation for Knowledge Transfer, 2019,
    arXiv:1904.05835 (their convolutions of size 1, which act on every position alike).
  """
  if not 0 < min_variance < variance:
    raise ValueError(f"expected 0 < min_variance < variance, got {min_variance} and {variance}")
  hidden_dim = teacher_dim if hidden_dim is None else hidden_dim
  layers = [
    projector(student_dim, hidden_dim),
    projector(hidden_dim, hidden_dim),
    projector(hidden_dim, teacher_dim),
  ]
  excess = variance - min_variance
  start = excess + math.log(-math.expm1(-excess))  # Softplus inverted, without overflow.

  def init(key: Array) -> Params:
    mean = [layer.init(k) for layer, k in zip(layers, jax.random.split(key, 3), strict=True)]
    return {"mean": mean, "variance": jnp.full([teacher_dim], start, jnp.float32)}

  def apply(params: Params, student_features: Array) -> tuple[Array, Array]:
    first, second, last = params["mean"]
    hidden = jax.nn.relu(layers[0].apply(first, student_features))
    hidden = jax.nn.relu(layers[1].apply(second, hidden))
    return layers[2].apply(last, hidden), jax.nn.softplus(params["variance"]) + min_variance

  return Helper(init, apply)


def factor_encoder(dim: int, factor_dim: int, *, spatial_ndim: int = 2) -> Helper:
  r"""Three convolutions that turn a map into factors: the paraphraser's, or the translator.

  $$F = f(k_3 * f(k_2 * f(k_1 * h))), \quad f = \mathrm{leaky\ relu}_{0.1}$$

  Kernels of width 3 with zero padding; the positions stay as they are.

  Args:
    dim: > 0, channels of the map.
    factor_dim: > 0, channels of the factors; the paper takes half of the teacher's.
    spatial_ndim: > 0, how many axes of positions: 1 for sequences, 2 for images.

  Returns:
    Helper; `apply(params, features [B, *positions, dim])` gives `[B, *positions, factor_dim]`.

  Raises:
    ValueError: if a width or `spatial_ndim` is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = factor_encoder(6, 3)
    >>> params = helper.init(jax.random.key(0))
    >>> helper.apply(params, jnp.ones([2, 8, 8, 6])).shape
    (2, 8, 8, 3)

  Reference:
    Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018,
    arXiv:1802.04977.
  """
  return _convolutions((dim, dim, factor_dim, factor_dim), spatial_ndim)


def factor_decoder(factor_dim: int, dim: int, *, spatial_ndim: int = 2) -> Helper:
  r"""Three convolutions back from factors to the map: trains the paraphraser, then goes.

  $$\hat{h} = f(k_3 * f(k_2 * f(k_1 * F))), \quad f = \mathrm{leaky\ relu}_{0.1}$$

  Args:
    factor_dim: > 0, channels of the factors.
    dim: > 0, channels of the map.
    spatial_ndim: > 0, how many axes of positions.

  Returns:
    Helper; `apply(params, factors [B, *positions, factor_dim])` gives `[B, *positions, dim]`.

  Raises:
    ValueError: if a width or `spatial_ndim` is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = factor_decoder(3, 6, spatial_ndim=1)
    >>> helper.apply(helper.init(jax.random.key(0)), jnp.ones([2, 8, 3])).shape
    (2, 8, 6)

  Reference:
    Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018,
    arXiv:1802.04977 (their transposed convolutions of stride 1 are convolutions with the kernel
    turned round).
  """
  return _convolutions((factor_dim, factor_dim, dim, dim), spatial_ndim)


def reviewer(
  student_dims: Sequence[int],
  teacher_dims: Sequence[int],
  *,
  hidden_dim: int,
  spatial_ndim: int = 2,
) -> Helper:
  r"""Attention-based fusion of the student's stages: each one reviews all deeper ones.

  $$u_l = a_l \odot r_l(h_l) + b_l \odot \mathrm{up}(u_{l+1}), \quad
  (a_l, b_l) = \sigma(k_l [r_l(h_l); \mathrm{up}(u_{l+1})]), \quad o_l = e_l * u_l$$

  r reduces the stage to `hidden_dim`, up repeats the positions of the deeper stage, a and b are one
  number a position, and e is a convolution of width 3 to the teacher's width. The deepest stage
  has none to review: $u_L = r_L(h_L)$. Each $o_l$ goes with the teacher's stage l into a
  `hierarchical_context_loss`.

  Args:
    student_dims: channels of the student's stages, from shallow to deep.
    teacher_dims: channels of the teacher's stages, which have the student's positions.
    hidden_dim: > 0, the width in which stages are fused.
    spatial_ndim: > 0, how many axes of positions.

  Returns:
    Helper; `apply(params, student_features)` takes and gives a list of `[B, *positions, C]`, from
    shallow to deep.

  Raises:
    ValueError: if the two sides differ in their number of stages or have none, or a width or
      `spatial_ndim` is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = reviewer([4, 6], [8, 10], hidden_dim=5)
    >>> params = helper.init(jax.random.key(0))
    >>> stages = [jnp.ones([2, 8, 8, 4]), jnp.ones([2, 4, 4, 6])]
    >>> [x.shape for x in helper.apply(params, stages)]
    [(2, 8, 8, 8), (2, 4, 4, 10)]

  Reference:
    Chen et al., Distilling Knowledge via Knowledge Review, 2021, arXiv:2104.09044.
  """
  if len(student_dims) != len(teacher_dims) or not student_dims:
    raise ValueError(f"stages must pair up, got {len(student_dims)} and {len(teacher_dims)}")
  reduces = [projector(dim, hidden_dim) for dim in student_dims]
  attends = [projector(2 * hidden_dim, 2) for _ in student_dims[1:]]
  expands = [_convolution(hidden_dim, dim, spatial_ndim) for dim in teacher_dims]
  parts = {"reduce": reduces, "attend": attends, "expand": expands}

  def init(key: Array) -> Params:
    keys = iter(jax.random.split(key, 3 * len(student_dims)))
    return {name: [part.init(next(keys)) for part in group] for name, group in parts.items()}

  def apply(params: Params, student_features: Sequence[Array]) -> list[Array]:
    outputs: list[Array] = []
    deeper = None
    for stage in reversed(range(len(student_dims))):
      fused = reduces[stage].apply(params["reduce"][stage], student_features[stage])
      if deeper is not None:
        deeper = jax.image.resize(deeper, fused.shape, "nearest")
        both = jnp.concatenate([fused, deeper], axis=-1)
        gates = jax.nn.sigmoid(attends[stage].apply(params["attend"][stage], both))
        fused = fused * gates[..., :1] + deeper * gates[..., 1:]
      outputs.insert(0, expands[stage].apply(params["expand"][stage], fused))
      deeper = fused
    return outputs

  return Helper(init, apply)


def _convolution(in_dim: int, out_dim: int, spatial_ndim: int) -> Helper:
  """A convolution of width 3 with zero padding, channels last."""
  if min(in_dim, out_dim, spatial_ndim) < 1:
    raise ValueError(f"widths must be positive, got {in_dim}, {out_dim} and {spatial_ndim} axes")
  shape = (3,) * spatial_ndim + (in_dim, out_dim)
  axes = "XYZUVW"[:spatial_ndim]
  layout = (f"N{axes}C", f"{axes}IO", f"N{axes}C")

  def init(key: Array) -> Params:
    kernel = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros([out_dim], jnp.float32)}

  def apply(params: Params, features: Array) -> Array:
    kernel = params["kernel"]
    dtype = jnp.result_type(features, kernel)
    out = jax.lax.conv_general_dilated(
      features.astype(dtype),
      kernel.astype(dtype),
      (1,) * spatial_ndim,
      "SAME",
      dimension_numbers=layout,
    )
    return out + jnp.broadcast_to(params["bias"], out.shape)

  return Helper(init, apply)


def _convolutions(dims: Sequence[int], spatial_ndim: int) -> Helper:
  layers = [_convolution(*pair, spatial_ndim) for pair in itertools.pairwise(dims)]

  def init(key: Array) -> Params:
    keys = jax.random.split(key, len(layers))
    return [layer.init(k) for layer, k in zip(layers, keys, strict=True)]

  def apply(params: Params, features: Array) -> Array:
    for layer, own in zip(layers, params, strict=True):
      features = jax.nn.leaky_relu(layer.apply(own, features), 0.1)
    return features

  return Helper(init, apply)
