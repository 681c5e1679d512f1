"""Distillation over a catalogue from a teacher known in part: its best items, or drawn ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses.common import FLOOR, check_temperature, constant, floored, kl_divergence, visible
from kdjax.losses.factored import count_items, scaled_as_it_is, sweep_loss
from kdjax.losses.normalized import Given, Outer, sweep_normalizer
from kdjax.losses.sampled_rest import Negatives, sampled_log_rest
from kdjax.losses.sampled_targets import SampledTargets
from kdjax.losses.top_k import TopK, teacher_buckets, with_some_tail
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array, FactoredLogits


def catalog_top_k_kl_loss(
  student: FactoredLogits,
  teacher: TopK,
  *,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  negatives: Negatives | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Forward KL over a catalogue from the teacher's best k and the mass of its tail, in blocks.

  $$L = T^2 \left( \sum_{v \in K} p^t_v \log \frac{p^t_v}{p^s_v} +
  \bar p^t \log \frac{\bar p^t}{\bar p^s} \right), \quad \bar p = 1 - \sum_{v \in K} p_v, \quad
  p = \mathrm{softmax}(z / T)$$

  Equal to `top_k_kl_loss(student.dense(), teacher, ...)`. Of the teacher nothing is read but what
  was kept; of the student the k rows, and the log-normaliser of all others.

  Args:
    student: query float `[..., d]`, table float `[V, d]` (or a `Table`, dequantized first), bias.
    teacher: TopK of arrays `[..., k]` and `[...]`, from `catalog_top_k_targets` or
      `top_k_targets`, no item twice; receives no gradient.
    temperature: T > 0, of the student; the one that the targets were made with.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    negatives: items that all tokens share, for an estimate of what the student gives to the tail
      (`sampled_log_rest`): then the time does not grow with V. None sums over the whole catalogue.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. An index out of range
    that counts gives NaN. Differentiable once.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, T <= 0, `block` < 1,
      or there are `negatives` beside an `axis_name` or `block`.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = TopK(jnp.log(jnp.array([[0.9]])), jnp.array([[0]]), jnp.zeros([1]))
    >>> student = FactoredLogits(jnp.zeros([1, 2]), jnp.ones([3, 2]))
    >>> round(float(catalog_top_k_kl_loss(student, teacher)), 4)
    0.7042

  Reference:
    As `top_k_kl_loss`; blocks as in Wijmans et al., Cut Your Losses in Large-Vocabulary Language
    Models, 2024, arXiv:2411.09009.
  """
  options: dict[str, Any] = {
    "temperature": temperature,
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "negatives": negatives,
  }
  return _of_best(_FORWARD, student, teacher, **options)


def catalog_top_k_reverse_kl_loss(
  student: FactoredLogits,
  teacher: TopK,
  *,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  negatives: Negatives | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Reverse KL over a catalogue from the teacher's best k and the mass of its tail, in blocks.

  $$L = T^2 \left( \sum_{v \in K} p^s_v \log \frac{p^s_v}{p^t_v} +
  \bar p^s \log \frac{\bar p^s}{\bar p^t} \right), \quad \bar p = 1 - \sum_{v \in K} p_v, \quad
  p = \mathrm{softmax}(z / T)$$

  Equal to `top_k_reverse_kl_loss(student.dense(), teacher, ...)`.

  Args:
    student: query float `[..., d]`, table float `[V, d]` (or a `Table`, dequantized first), bias.
    teacher: TopK of arrays `[..., k]` and `[...]`, from `catalog_top_k_targets` or
      `top_k_targets`, no item twice; receives no gradient.
    temperature: T > 0, of the student; the one that the targets were made with.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    negatives: items that all tokens share, for an estimate of what the student gives to the tail
      (`sampled_log_rest`): then the time does not grow with V. None sums over the whole catalogue.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. A teacher's tail below
    2**-24 counts as 2**-24. An index out of range that counts gives NaN. Differentiable once.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, T <= 0, `block` < 1,
      or there are `negatives` beside an `axis_name` or `block`.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = TopK(jnp.log(jnp.array([[0.9]])), jnp.array([[0]]), jnp.zeros([1]))
    >>> student = FactoredLogits(jnp.zeros([1, 2]), jnp.ones([3, 2]))
    >>> round(float(catalog_top_k_reverse_kl_loss(student, teacher)), 4)
    0.9337

  Reference:
    As `top_k_reverse_kl_loss`.
  """
  options: dict[str, Any] = {
    "temperature": temperature,
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
    "negatives": negatives,
  }
  return _of_best(_REVERSE, student, teacher, **options)


def catalog_sampled_cross_entropy_loss(
  student: FactoredLogits,
  teacher: SampledTargets,
  *,
  temperature: float = 1.0,
  block: int | None = None,
  axis_name: str | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy over a catalogue with a sparse target, times temperature**2, in blocks.

  $$L = -T^2 \sum_n w_n \log p^s_{v_n}, \quad p = \mathrm{softmax}(z / T)$$

  Equal to `sampled_cross_entropy_loss(student.dense(), teacher, ...)`.

  Args:
    student: query float `[..., d]`, table float `[V, d]` (or a `Table`, dequantized first), bias.
    teacher: SampledTargets of arrays `[..., N]`; receives no gradient.
    temperature: T > 0, of the student; the one that the targets were made with.
    block: items a block, or None to choose from the shapes.
    axis_name: inside `jax.shard_map`, the mesh axis over which the rows of the tables are split
      evenly; labels stay those of the whole catalogue. None where they are whole.
    where: bool `[...]`, the positions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`. `jnp.mean`, `jnp.sum` and `totals` take gradients
      in the forward sweep, others recompute it on the way back.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. An index out of range
    that counts gives NaN. Differentiable once.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, T <= 0 or
      `block` < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> targets = SampledTargets(jnp.array([[2, 2, 0]]), jnp.full([1, 3], 1 / 3))
    >>> student = FactoredLogits(jnp.zeros([1, 2]), jnp.ones([4, 2]))
    >>> round(float(catalog_sampled_cross_entropy_loss(student, targets)), 4)
    1.3863

  Reference:
    As `sampled_cross_entropy_loss`.
  """
  items, weights, wrong = drawn_items(student, teacher, where, axis_name)
  options = {
    "temperature": temperature,
    "block": block,
    "where": where,
    "reduce_fn": reduce_fn,
    "axis_name": axis_name,
  }
  return _swept(_CROSS_ENTROPY, student, items, weights, wrong, **options)


def _of_best(outer: Outer, student, teacher: TopK, *, negatives: Negatives | None, **options):
  if negatives is not None and (options["axis_name"], options["block"]) != (None, None):
    raise ValueError("negatives need no blocks: leave axis_name and block out")
  items, log_t, wrong = best_and_rest(student, teacher, options["where"], options["axis_name"])
  if negatives is not None:
    options = {name: options[name] for name in ("temperature", "where", "reduce_fn")}
    return _estimated(outer, student, items, log_t, wrong, negatives, **options)
  return _swept(outer, student, items, log_t, wrong, **options)


def best_and_rest(
  student: FactoredLogits, teacher: TopK, where: Array | None, axis_name: str | None
) -> tuple[Array, Array, Array]:
  """A teacher's best items and how likely it finds them and all others.

  Returns:
    Items `[T, k]`, V for the impossible; their log-probabilities and that of the rest
    `[T, k + 1]`; and which tokens name an item that is none, `[...]`.

  Raises:
    ValueError: if the leading axes differ.
  """
  values, indices, log_z = constant(tuple(teacher))
  if jnp.shape(log_z) != student.query.shape[:-1]:
    raise ValueError(
      f"targets of shape {jnp.shape(log_z)} for logits of {student.query.shape[:-1]} and V"
    )
  items, wrong = _items(student, indices, values, where, axis_name)
  values = floored(visible(values, where, core_ndim=1)).reshape(items.shape)
  num_items = count_items(student, axis_name)
  left = jnp.full(len(values), values.shape[1] < num_items)
  log_t = teacher_buckets(values, visible(log_z, where).reshape(-1), left)
  return jnp.where(values != FLOOR, items, num_items), log_t, wrong


def drawn_items(
  student: FactoredLogits, teacher: SampledTargets, where: Array | None, axis_name: str | None
) -> tuple[Array, Array, Array]:
  """Drawn items and their weights `[T, N]`, and which tokens name one that is none, `[...]`.

  Raises:
    ValueError: if the leading axes differ.
  """
  indices, weights = constant(tuple(teacher))
  items, wrong = _items(student, indices, weights, where, axis_name)
  return items, visible(weights, where, core_ndim=1).reshape(items.shape), wrong


def _items(student: FactoredLogits, indices, weights, where, axis_name) -> tuple[Array, Array]:
  """Items `[T, k]`, and which tokens name one that is none, `[...]`."""
  leading, shape = student.query.shape[:-1], jnp.shape(weights)
  if jnp.shape(indices) != shape or shape[:-1] != leading:
    raise ValueError(
      f"logits of shape {leading} and V, indices {jnp.shape(indices)}, values or weights {shape}"
    )
  indices = indices if where is None else jnp.where(jnp.asarray(where)[..., None], indices, 0)
  wrong = jnp.any((indices < 0) | (indices >= count_items(student, axis_name)), axis=-1)
  return indices.reshape(-1, shape[-1]).astype(jnp.int32), wrong


def _swept(outer: Outer, student, items, values, wrong, *, temperature, **options):
  check_temperature(temperature)
  scale = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32) ** 2, len(items))
  sweep = functools.partial(sweep_normalizer, outer)
  given = Given(items, (values, scale))
  return sweep_loss(sweep, student, given, temperature=temperature, wrong=wrong, **options)[0]


def _estimated(
  outer: Outer, student, items, values, wrong, negatives, *, temperature, where, reduce_fn
):
  """As `_swept`, from the rows of the items and of the negatives alone."""
  check_temperature(temperature)
  flat = scaled_as_it_is(student, where, temperature)
  log_rest = sampled_log_rest(flat, items, negatives)
  logits = flat.at(jnp.minimum(items, student.num_items - 1))
  scale = jnp.asarray(temperature, jnp.float32) ** 2
  each = outer.loss(log_rest, logits, (values, scale))[0].reshape(wrong.shape)
  each = each + jnp.where(wrong, jnp.nan, 0.0)
  return reduce_loss(each, where=where, reduce_fn=reduce_fn)


def student_buckets(log_rest: Array, logits: Array, log_t: Array) -> Array:
  """The student's logits where the teacher's buckets are: `[T, k + 1]`."""
  logits = jnp.where(log_t[:, :-1] == FLOOR, FLOOR, logits)
  return jnp.concatenate([logits, log_rest[:, None]], axis=-1)


def _forward(log_rest: Array, logits: Array, values) -> tuple[Array, None]:
  log_t, scale = values
  log_s = jax.nn.log_softmax(student_buckets(log_rest, logits, log_t), axis=-1)
  return scale * kl_divergence(log_t, log_s), None


def _reverse(log_rest: Array, logits: Array, values) -> tuple[Array, None]:
  log_t, scale = values
  log_s = jax.nn.log_softmax(student_buckets(log_rest, logits, log_t), axis=-1)
  return scale * kl_divergence(log_s, with_some_tail(log_t)), None


def _cross_entropy(log_normalizer: Array, logits: Array, values) -> tuple[Array, None]:
  weights, scale = values
  return scale * jnp.sum(weights * (log_normalizer[:, None] - logits), axis=-1), None


_FORWARD, _REVERSE = Outer(_forward, others=True), Outer(_reverse, others=True)
_CROSS_ENTROPY = Outer(_cross_entropy, others=False)
