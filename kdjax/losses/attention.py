"""Losses on attention: where a layer looks, and how its tokens relate to each other."""

import math

import jax.numpy as jnp

from kdjax.losses.common import check_same_axes, constant, norm, unit, visible
from kdjax.losses.logits import kl_loss, logit_mse_loss
from kdjax.losses.maps import visible_map
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


def attention_transfer_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  power: float = 2.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Distance of normalised attention maps: how active each position is, over all channels.

  $$L = \left\lVert \frac{Q^s}{\lVert Q^s \rVert_2} - \frac{Q^t}{\lVert Q^t \rVert_2}
  \right\rVert_2, \quad Q_x = \sum_c |h_{x c}|^p$$

  The numbers of channels may differ; the positions must not (resize the larger map). A distance of
  at most 1e-6, which may be rounding, counts as 0.

  Args:
    student_features: float `[B, *positions, C_s]`: images, videos or tokens, channels last.
    teacher_features: float `[B, *positions, C_t]`; receives no gradient.
    power: p >= 1; the larger, the more the strongest channels decide.
    support: bool `[*positions]` or `[B, *positions]`, the positions that exist.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, sqrt 2]: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ before the channels, `where` has not the shape `[B]`, or
      p < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0, 0.0], [2.0, 1.0]]])
    >>> round(float(attention_transfer_loss(student, teacher)), 4)
    1.4142

  Reference:
    Zagoruyko, Komodakis, Paying More Attention to Attention, 2017, arXiv:1612.03928, Eq. 2 without
    its factor beta / 2. Their code squares the norm and divides by the number of positions.
  """
  if isinstance(power, int | float) and not power >= 1:
    raise ValueError(f"power must be at least 1, got {power}")
  check_same_axes(student_features, teacher_features, -1)
  student, _ = visible_map(student_features, where, support)
  teacher, _ = visible_map(constant(teacher_features), where, support)
  maps = [unit(jnp.sum(jnp.abs(x) ** power, axis=-1)) for x in (student, teacher)]
  # Equal maps may differ by rounding, in whose direction the norm would have a full gradient.
  return reduce_loss(norm(maps[0] - maps[1], least=1e-6), where=where, reduce_fn=reduce_fn)


def attention_mse_loss(
  student_attention: Array,
  teacher_attention: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Mean squared difference of attention matrices, query by query.

  $$L = \frac{1}{|S|} \sum_{j \in S} (A^s_{ij} - A^t_{ij})^2$$

  `logit_mse_loss` on scores over keys; keys with a score of -inf on either side do not count.
  For attention distributions, `kl_loss` takes the same arguments.

  Args:
    student_attention: float `[..., keys]`, mostly `[batch, heads, queries, keys]`.
    teacher_attention: float of the same shape; receives no gradient.
    support: bool `[keys]` or `[..., keys]`, the keys that exist.
    where: bool `[...]`, the queries that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared units of the attention: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> padded = jnp.array([True, True, False])
    >>> student, teacher = jnp.array([[2.0, 0.0, 9.0]]), jnp.array([[0.0, 0.0, 0.0]])
    >>> float(attention_mse_loss(student, teacher, support=padded))
    2.0

  Reference:
    Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2020,
    arXiv:1909.10351, Eq. 7 (scores before the softmax, as they advise).
  """
  return logit_mse_loss(
    student_attention, teacher_attention, support=support, where=where, reduce_fn=reduce_fn
  )


def attention_relation_loss(
  student_queries: Array,
  student_keys: Array,
  teacher_queries: Array,
  teacher_keys: Array,
  *,
  num_heads: int = 1,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""KL(teacher || student) of what each token attends to, from queries and keys.

  $$L_i = \frac{1}{H} \sum_h \sum_j R^t_{h i j} \log \frac{R^t_{h i j}}{R^s_{h i j}}, \quad
  R_h = \mathrm{softmax}(Q_h K_h^\top / \sqrt{d / H})$$

  Only tokens are compared with tokens, so the widths of student and teacher may differ. H need not
  be the number of heads of either: both are concatenated and cut into H relation heads.

  Args:
    student_queries: float `[..., L, d_s]`, the heads concatenated.
    student_keys: float `[..., L, d_s]`.
    teacher_queries: float `[..., L, d_t]`; receives no gradient.
    teacher_keys: float `[..., L, d_t]`; receives no gradient.
    num_heads: H > 0, relation heads; divides d_s and d_t.
    support: bool `[L]` (keys), `[L, L]` or `[..., L, L]` (queries and keys): the keys that a query
      sees, such as the lower triangle of a causal model. Masked tokens are no keys in any case.
    where: bool `[..., L]`, the tokens that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[..., L]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes do not fit, `where` has not the shape `[..., L]`, or H does not
      divide both widths.

  Example:
    >>> import jax.numpy as jnp
    >>> q, k = jnp.array([[[0.0], [0.0]]]), jnp.array([[[0.0], [1.0]]])
    >>> round(float(attention_relation_loss(q, k, k, k)), 4)
    0.0555

  Reference:
    Wang et al., MiniLM: Deep Self-Attention Distillation, 2020, arXiv:2002.10957 (as many relation
    heads as heads); MiniLMv2: Multi-Head Self-Attention Relation Distillation, 2021,
    arXiv:2012.15828.
  """
  for other in (student_keys, teacher_queries, teacher_keys):
    check_same_axes(student_queries, other, -1)
  teacher_queries, teacher_keys = constant((teacher_queries, teacher_keys))
  student = _scores(student_queries, student_keys, num_heads, where)
  teacher = _scores(teacher_queries, teacher_keys, num_heads, where)
  seen = jnp.ones(student.shape, bool)
  if support is not None:
    support = jnp.asarray(support)
    seen = jnp.broadcast_to(support if support.ndim < 3 else support[..., None, :, :], seen.shape)
  if where is not None:
    seen = seen & jnp.broadcast_to(jnp.asarray(where)[..., None, None, :], seen.shape)
  loss = jnp.mean(kl_loss(student, teacher, support=seen, reduce_fn=None), axis=-2)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def self_relation_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  num_heads: int = 1,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""KL(teacher || student) of how the tokens relate to each other: value relations and their kin.

  $$L_i = \frac{1}{H} \sum_h \sum_j R^t_{h i j} \log \frac{R^t_{h i j}}{R^s_{h i j}}, \quad
  R_h = \mathrm{softmax}(V_h V_h^\top / \sqrt{d / H})$$

  `attention_relation_loss` with the same vectors as queries and keys. MiniLM adds the one on
  values to the KL of attention; MiniLMv2 takes it on queries, on keys and on values.

  Args:
    student_features: float `[..., L, d_s]`, the heads concatenated.
    teacher_features: float `[..., L, d_t]`; receives no gradient.
    num_heads: H > 0, relation heads; divides d_s and d_t.
    support: bool `[L]` (keys), `[L, L]` or `[..., L, L]` (queries and keys): the keys that a query
      sees. Masked tokens are no keys in any case.
    where: bool `[..., L]`, the tokens that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[..., L]` for `reduce_fn=None`.

  Raises:
    ValueError: as `attention_relation_loss`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros([1, 2, 1]), jnp.array([[[0.0], [1.0]]])
    >>> round(float(self_relation_loss(student, teacher)), 4)
    0.0555

  Reference:
    Wang et al., MiniLM: Deep Self-Attention Distillation, 2020, arXiv:2002.10957; MiniLMv2:
    Multi-Head Self-Attention Relation Distillation, 2021, arXiv:2012.15828.
  """
  return attention_relation_loss(
    student_features,
    student_features,
    teacher_features,
    teacher_features,
    num_heads=num_heads,
    support=support,
    where=where,
    reduce_fn=reduce_fn,
  )


def _scores(queries, keys, num_heads, where) -> Array:
  """Scaled dot products, `[..., heads, L, L]`."""
  if num_heads < 1 or queries.shape[-1] % num_heads:
    raise ValueError(f"num_heads = {num_heads} does not divide the width {queries.shape[-1]}")
  width = queries.shape[-1] // num_heads
  shape = (*queries.shape[:-1], num_heads, width)
  heads = [visible(x, where, core_ndim=1).reshape(shape) for x in (queries, keys)]
  return jnp.einsum("...qhd,...khd->...hqk", *heads) / math.sqrt(width)
