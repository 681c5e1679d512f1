"""What the losses share: checks, masking before the maths, and logits that stay finite."""

import jax
import jax.numpy as jnp

from kdjax.reduce import safe_divide
from kdjax.types import Array

# Stands for -inf. Sums, differences and products with 0 of it stay finite in float32.
FLOOR = -1e30


def check_same_shape(student, teacher) -> None:
  """Raises ValueError unless both arrays have one shape."""
  if jnp.shape(student) != jnp.shape(teacher):
    raise ValueError(
      f"student and teacher differ in shape: {jnp.shape(student)} and {jnp.shape(teacher)}"
    )


def check_same_axes(student, teacher, stop: int) -> None:
  """Raises ValueError unless both arrays agree in `shape[:stop]`; other axes may differ."""
  if jnp.shape(student)[:stop] != jnp.shape(teacher)[:stop]:
    raise ValueError(
      f"student and teacher differ in shape: {jnp.shape(student)} and {jnp.shape(teacher)}, "
      f"of which shape[:{stop}] must agree"
    )


def check_temperature(temperature) -> None:
  """Raises ValueError for a Python number that is not positive (a traced one is not checked)."""
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f"temperature must be positive, got {temperature}")


def check_fraction(name: str, value) -> None:
  """Raises ValueError for a Python number outside [0, 1] (a traced one is not checked)."""
  if isinstance(value, int | float) and not 0 <= value <= 1:
    raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_labels(labels, shape) -> None:
  """Raises ValueError unless there is one label for each example."""
  if jnp.shape(labels) != shape:
    raise ValueError(f"labels have shape {jnp.shape(labels)}, expected {shape}")


def visible(values, where: Array | None, *, core_ndim: int = 0) -> Array:
  """`values` in float32, and 0 where masked, so that garbage there reaches no gradient.

  Masking the loss alone is not enough: 0 times the NaN of a padded row is NaN on the way back.

  Args:
    values: float `[..., *core]`.
    where: bool `[...]` or None.
    core_ndim: how many trailing axes belong to one example.

  Returns:
    float32 of the shape of `values`.

  Raises:
    ValueError: if `where` has not the shape of the leading axes.
  """
  values = jnp.asarray(values, jnp.float32)
  if where is None:
    return values
  leading = values.shape[: values.ndim - core_ndim]
  if jnp.shape(where) != leading:
    raise ValueError(f"where has shape {jnp.shape(where)} but the unreduced loss has {leading}")
  return jnp.where(jnp.reshape(where, leading + (1,) * core_ndim), values, 0.0)


def constant(values):
  """A teacher's values (any pytree): no loss of this library sends a gradient through them."""
  return jax.lax.stop_gradient(values)


def floored(logits: Array, support: Array | None = None) -> Array:
  """`logits` with `FLOOR` for -inf and outside of `support` (bool, broadcast from the left)."""
  logits = _at_least_floor(logits)
  if support is None:
    return logits
  return jnp.where(jnp.broadcast_to(support, logits.shape), logits, FLOOR)


@jax.custom_jvp
def _at_least_floor(logits: Array) -> Array:
  return jnp.maximum(logits, FLOOR)


@_at_least_floor.defjvp
def _at_least_floor_jvp(primals, tangents):
  """Without the even split among equals of `jnp.maximum`, which costs a buffer of the logits."""
  (logits,), (change,) = primals, tangents
  return _at_least_floor(logits), jnp.where(logits > FLOOR, change, 0.0)


def log_probs(logits: Array, temperature=1.0, support: Array | None = None) -> Array:
  """log softmax(logits / temperature) over `support`; finite even at -inf and without support."""
  return jax.nn.log_softmax(floored(logits, support) / temperature, axis=-1)


def log_prob_pair(
  student_logits, teacher_logits, *, temperature, support: Array | None, where: Array | None
) -> tuple[Array, Array]:
  """log softmax(logits / temperature) of both: checked, masked, the teacher without gradient."""
  check_same_shape(student_logits, teacher_logits)
  check_temperature(temperature)
  student = visible(student_logits, where, core_ndim=1)
  teacher = visible(constant(teacher_logits), where, core_ndim=1)
  return log_probs(student, temperature, support), log_probs(teacher, temperature, support)


def kl_divergence(log_p: Array, log_q: Array) -> Array:
  """KL(p || q) over the last axis: `[...]`."""
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def log_mixture(log_p: Array, log_q: Array, weight) -> Array:
  """log((1 - weight) p + weight q): probabilities are mixed, not their logarithms."""
  return jnp.logaddexp(log_p + jnp.log1p(-weight), log_q + jnp.log(weight))


def gather(values: Array, indices: Array) -> Array:
  """`values[..., indices[..., k]]`, and NaN where that is no index: an error must not look like 0.

  Args:
    values: float `[..., C]`.
    indices: int `[..., K]`.

  Returns:
    float `[..., K]`.
  """
  indices = jnp.where(indices < 0, values.shape[-1], indices)  # Negative ones would wrap around.
  return jnp.take_along_axis(values, indices, axis=-1, mode="fill", fill_value=jnp.nan)


def pick(values: Array, labels: Array) -> Array:
  """`values[..., labels]`, and NaN for a label that is no index."""
  return gather(values, labels[..., None])[..., 0]


def existing(support: Array | None, shape) -> Array:
  """`support` as bool of the full `shape` (broadcast from the left), all True for None."""
  return jnp.ones(shape, bool) if support is None else jnp.broadcast_to(support, shape)


def mean_over(values: Array, real: Array) -> Array:
  """Mean over the last axis of the `values` that are `real`: `[...]`, 0 where none is."""
  return safe_divide(jnp.sum(jnp.where(real, values, 0.0), axis=-1), jnp.sum(real, axis=-1))


def norm(values: Array, axis=-1, *, least: float = 0.0) -> Array:
  """Euclidean norm over `axis` (or axes); 0 with gradient 0, not NaN, where it is at most `least`.

  Args:
    values: float `[...]`.
    axis: the axis or axes of one vector.
    least: what counts as 0: above 0 for a difference of which only rounding may be left.

  Returns:
    float without these axes.
  """
  square = jnp.sum(values * values, axis=axis)
  zero = square <= least**2
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def unit(values: Array, axis=-1) -> Array:
  """`values` over their Euclidean norm along `axis` (or axes); a zero vector stays 0, gradient 0.

  A norm of at most 1e-12 counts as 0: it has no direction that float32 could tell.
  """
  square = jnp.sum(values * values, axis=axis, keepdims=True)
  zero = square <= 1e-24
  return jnp.where(zero, 0.0, values) / jnp.sqrt(jnp.where(zero, 1.0, square))


def nan_where(spoiled: Array, loss: Array) -> Array:
  """NaN where `spoiled`: a teacher's NaN must not vanish in a comparison or a sort."""
  return jnp.where(spoiled, jnp.nan, loss)
