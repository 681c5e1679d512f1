"""What the losses share: checks, masking before the maths, and logits that stay finite."""

import jax
import jax.numpy as jnp

from kdjax.types import Array

# Stands for -inf. Sums, differences and products with 0 of it stay finite in float32.
FLOOR = -1e30


def check_same_shape(student, teacher) -> None:
  """Raises ValueError unless both arrays have one shape."""
  if jnp.shape(student) != jnp.shape(teacher):
    raise ValueError(
      f"student and teacher differ in shape: {jnp.shape(student)} and {jnp.shape(teacher)}"
    )


def check_temperature(temperature) -> None:
  """Raises ValueError for a Python number that is not positive (a traced one is not checked)."""
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f"temperature must be positive, got {temperature}")


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
  logits = jnp.maximum(logits, FLOOR)
  if support is None:
    return logits
  return jnp.where(jnp.broadcast_to(support, logits.shape), logits, FLOOR)


def log_probs(logits: Array, temperature=1.0, support: Array | None = None) -> Array:
  """log softmax(logits / temperature) over `support`; finite even at -inf and without support."""
  return jax.nn.log_softmax(floored(logits, support) / temperature, axis=-1)


def pick(values: Array, labels: Array) -> Array:
  """`values[..., labels]`, and NaN for a label that is no index: an error must not look like 0."""
  labels = jnp.where(labels < 0, values.shape[-1], labels)  # Negative ones would wrap around.
  picked = jnp.take_along_axis(values, labels[..., None], axis=-1, mode="fill", fill_value=jnp.nan)
  return picked[..., 0]
