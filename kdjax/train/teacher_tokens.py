"""A teacher that reads texts in tokens of its own, beside a student that reads them in others."""

import jax.numpy as jnp

from kdjax.types import Apply, Array, Batch, Outputs, Params

NAME = "teacher"


def with_own_tokens(apply: Apply, *, name: str = NAME) -> Apply:
  """The teacher's `apply` for batches that bring its tokens beside the student's.

  It reads `<name>_tokens`, `<name>_segments` and `<name>_positions`, int `[B, M]`, and its queries
  are moved to the student's positions by `<name>_places`, int `[B, L]`: which of the M belongs to
  each of the L, -1 where none does (what stands there must not count). See
  `kdjax.data.retokenized.pack_beside`. Its outputs have no features.

  Raises:
    ValueError: at tracing, if the teacher's logits are not factored.
  """

  def own(params: Params, batch: Batch, *, key: Array | None = None) -> Outputs:
    given = {field: batch[f"{name}_{field}"] for field in ("tokens", "segments", "positions")}
    logits = apply(params, given, key=key).logits
    if not hasattr(logits, "query"):
      raise ValueError("only a teacher with FactoredLogits may read tokens of its own")
    places = jnp.maximum(batch[f"{name}_places"], 0)[..., None]
    return Outputs(logits._replace(query=jnp.take_along_axis(logits.query, places, axis=1)), {})

  return own
