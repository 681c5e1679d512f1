"""Supervised partners of distillation for embeddings and for unaligned sequences."""

import jax
import jax.numpy as jnp
import optax

from kdjax.losses.common import FLOOR, check_labels, check_temperature, log_probs, visible
from kdjax.losses.sequence import combined
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def contrastive_loss(
  features: Array,
  labels: Array,
  *,
  temperature: float = 0.1,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Supervised contrastive loss: examples of one label attract, all others of the batch repel.

  $$L_i = -\frac{1}{|P_i|} \sum_{j \in P_i}
  \log \frac{e^{u_i \cdot u_j / \tau}}{\sum_{k \ne i} e^{u_i \cdot u_k / \tau}}, \quad
  u = \frac{h}{\lVert h \rVert}$$

  $P_i$ holds the other examples with the label of i. Pairs (two views, a query and its item) are
  labels that occur twice each: this is then the symmetric InfoNCE loss, NT-Xent.

  Args:
    features: float `[..., d]`; all leading axes together are the batch.
    labels: int `[...]`, any numbers; masked ones may be anything.
    temperature: tau > 0.
    where: bool `[...]`, the examples that count; the others neither attract nor repel.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 for an example whose label no
    other has; it counts in the mean.

  Raises:
    ValueError: if `labels` or `where` has not the shape `[...]`, or tau <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> features = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    >>> loss = contrastive_loss(features, jnp.array([0, 0, 1, 1]), temperature=1.0)
    >>> round(float(loss), 4)  # log(e + 2) - 1.
    0.5514

  Reference:
    Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362 (L_out); Chen et al., A
    Simple Framework for Contrastive Learning, 2020, arXiv:2002.05709 (pairs).
  """
  leading = jnp.shape(features)[:-1]
  check_labels(labels, leading)
  check_temperature(temperature)
  vectors = visible(features, where, core_ndim=1)
  vectors = vectors.reshape(-1, vectors.shape[-1])
  labels = jnp.asarray(labels).reshape(-1)
  size = vectors.shape[0]
  seen = jnp.ones([size], bool) if where is None else jnp.asarray(where).reshape(-1)
  units = _unit(vectors)
  partner = ~jnp.eye(size, dtype=bool) & seen[None, :]
  # A small temperature magnifies the rounding of products in a GPU's default precision.
  cosines = jnp.matmul(units, units.T, precision="highest")
  log_p = log_probs(cosines, temperature, partner)
  positive = partner & (labels[:, None] == labels[None, :])
  total = jnp.sum(jnp.where(positive, log_p, 0.0), axis=-1)
  loss = -safe_divide(total, jnp.sum(positive, axis=-1))
  return reduce_loss(loss.reshape(leading), where=where, reduce_fn=reduce_fn)


def _unit(vectors: Array) -> Array:
  """Vectors of length 1; a zero vector stays 0, with zero gradient."""
  # Relative to the largest component, so that squares neither overflow nor vanish.
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
  scaled = vectors / jnp.where(largest == 0, 1.0, largest)
  square = jnp.sum(scaled**2, axis=-1, keepdims=True)
  return scaled / jnp.sqrt(jnp.where(square == 0, 1.0, square))


def ctc_loss(
  logits: Array,
  labels: Array,
  *,
  blank: int = 0,
  support: Array | None = None,
  frame_where: Array | None = None,
  label_where: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Connectionist temporal classification: a short label sequence somewhere in many frames.

  $$L = -\log \sum_{\pi \in B^{-1}(y)} \prod_{t=1}^{T} \mathrm{softmax}(z_t)_{\pi_t}$$

  B merges repeated classes of a path and then drops the blanks. Inside `jax.shard_map` it needs
  `check_vma=False`, as the loop is optax's.

  Args:
    logits: float `[..., T, C]`, of each frame.
    labels: int `[..., S]` in `[0, C)`, not the blank; those that do not count may be anything.
    blank: the class that stands for no label.
    support: bool `[C]` or `[..., T, C]`, the classes that exist.
    frame_where: bool `[..., T]`, the frames that count.
    label_where: bool `[..., S]`, the labels that count: the first ones of each sequence.
    where: bool `[...]`, the sequences that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. Labels that do not fit into the
    frames cost a huge but finite amount. A label out of range (or blank) that counts gives NaN.

  Raises:
    ValueError: if leading axes or masks differ in shape, or `blank` is no class.

  Example:
    >>> import jax.numpy as jnp
    >>> loss = ctc_loss(jnp.zeros([1, 2, 2]), jnp.array([[1]]))
    >>> round(float(loss), 4)  # Three of the four paths: 01, 10, 11.
    0.2877

  Reference:
    Graves et al., Connectionist Temporal Classification, 2006 (the recursion is optax's).
  """
  shape, label_shape = jnp.shape(logits), jnp.shape(labels)
  if len(shape) < 2 or label_shape[:-1] != shape[:-2]:
    raise ValueError(f"logits of shape {shape} need labels {shape[:-2]} plus one axis")
  if not 0 <= blank < shape[-1]:
    raise ValueError(f"blank must lie in [0, {shape[-1]}), got {blank}")
  frames = combined(frame_where, where, shape[:-1])
  known = combined(label_where, where, label_shape)
  known = jnp.ones(label_shape, bool) if known is None else known
  log_p = log_probs(visible(logits, frames, core_ndim=1), 1.0, support)
  wrong = known & ((labels < 0) | (labels >= shape[-1]) | (labels == blank))
  labels = jnp.where(known & ~wrong, labels, blank)
  padding = jnp.zeros(shape[:-1]) if frames is None else 1.0 - frames.astype(jnp.float32)
  # The recursion picks log-probabilities by products with 0 and 1, which must not be rounded.
  with jax.default_matmul_precision("highest"):
    loss = optax.losses.ctc_loss(
      log_p.reshape((-1, *shape[-2:])),
      padding.reshape(-1, shape[-2]),
      labels.reshape(-1, label_shape[-1]),
      1.0 - known.reshape(-1, label_shape[-1]).astype(jnp.float32),
      blank_id=blank,
      log_epsilon=FLOOR,  # Its default of -1e5 would cap the loss of long sequences.
    )
  loss = loss.reshape(shape[:-2]) + jnp.where(jnp.any(wrong, axis=-1), jnp.nan, 0.0)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)
