"""Divergences over a whole catalogue besides forward KL, which never build its matrix."""

import functools

import jax.numpy as jnp

from kdjax.losses.common import check_fraction
from kdjax.losses.divergence_sweep import Part, sweep_divergence
from kdjax.losses.divergences import JensenShannon, reverse_kl
from kdjax.losses.factored import scaled_teacher, sweep_loss
from kdjax.reduce import ReduceFn
from kdjax.types import Array, FactoredLogits


def catalog_reverse_kl_loss(
  student: FactoredLogits,
  teacher: FactoredLogits,
  *,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Temperature-softened reverse KL over a catalogue, times temperature**2, in blocks.

  $$L = T^2 \sum_v p^s_v (\log p^s_v - \log p^t_v), \quad
  p = \mathrm{softmax}((E q + b) / T)$$

  Equal to `reverse_kl_loss(student.dense(), teacher.dense(), ...)`. Student and teacher may differ
  in width and dtype. An item whose bias is -inf is impossible.

  Args:
    student: query float `[..., d_s]`, table float `[V, d_s]` (or a `Table`, dequantized first).
    teacher: query float `[..., d_t]`, table `[V, d_t]` or a `Table`; receives no gradient.
    temperature: T > 0, shared by both.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. Differentiable once.

  Raises:
    ValueError: if leading axes or V differ, `where` has not the shape `[...]`, T <= 0 or
      `block` < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = FactoredLogits(jnp.zeros([1, 1]), jnp.ones([2, 1]))
    >>> student = FactoredLogits(jnp.ones([1, 2]), jnp.log(jnp.array([[0.9, 1.0], [0.1, 1.0]])))
    >>> round(float(catalog_reverse_kl_loss(student, teacher)), 4)
    0.3681

  Reference:
    As `reverse_kl_loss`; fused with the last linear layer as in Hsu et al., Liger Kernel, 2024,
    arXiv:2410.10989.
  """
  return _divergence(reverse_kl, student, teacher, temperature, block, axis_name, where, reduce_fn)


def catalog_jensen_shannon_loss(
  student: FactoredLogits,
  teacher: FactoredLogits,
  *,
  teacher_weight: float = 0.5,
  normalized: bool = False,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Generalised Jensen-Shannon divergence over a catalogue, times temperature**2, in blocks.

  $$L = T^2 \left( \beta\, \mathrm{KL}(p^t \Vert m) + (1 - \beta)\, \mathrm{KL}(p^s \Vert m)
  \right), \quad m = \beta p^t + (1 - \beta) p^s, \quad p = \mathrm{softmax}((E q + b) / T)$$

  with $\beta$ the `teacher_weight`. Equal to `jensen_shannon_loss(student.dense(),
  teacher.dense(), ...)`, whose limits at the ends it shares.

  Args:
    student: query float `[..., d_s]`, table float `[V, d_s]` (or a `Table`, dequantized first).
    teacher: query float `[..., d_t]`, table `[V, d_t]` or a `Table`; receives no gradient.
    teacher_weight: beta in [0, 1], a Python number.
    normalized: divide by beta (1 - beta), by its limit at the ends.
    temperature: T > 0, shared by both.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. Differentiable once.

  Raises:
    ValueError: if leading axes or V differ, `where` has not the shape `[...]`, T <= 0, `block` < 1,
      or the weight is outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([1, 1]), jnp.ones([2, 1]))
    >>> teacher = FactoredLogits(jnp.ones([1, 2]), jnp.log(jnp.array([[0.9, 1.0], [0.1, 1.0]])))
    >>> round(float(catalog_jensen_shannon_loss(student, teacher)), 4)
    0.1017

  Reference:
    As `jensen_shannon_loss`; fused with the last linear layer as in Hsu et al., Liger Kernel, 2024,
    arXiv:2410.10989.
  """
  check_fraction("teacher_weight", teacher_weight)
  part = JensenShannon(float(teacher_weight), normalized)
  return _divergence(part, student, teacher, temperature, block, axis_name, where, reduce_fn)


def _divergence(part: Part, student, teacher, temperature, block, axis_name, where, reduce_fn):
  scale = jnp.asarray(temperature, jnp.float32) ** 2
  given = (scaled_teacher(student, teacher, where, temperature), scale)
  sweep = functools.partial(sweep_divergence, part)
  options = {"block": block, "where": where, "reduce_fn": reduce_fn, "axis_name": axis_name}
  return sweep_loss(sweep, student, given, temperature=temperature, **options)[0]
