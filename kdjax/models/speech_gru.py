"""A recurrent recogniser of speech: what was said in a recording, character by character."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.layers import Dense
from kdjax.models.linen import Sizes, collapse, from_linen, per_layer, sizes_of
from kdjax.models.recurrent import recurrent_axes, recurrent_layers, recurrent_widths
from kdjax.types import Array, Batch, Model, Outputs, Params


class SpeechGRU(nn.Module):
  r"""Recurrent layers over frames of sound, a distribution over characters at every frame.

  $x_t = \mathrm{relu}(f_t W + b)$, recurrent layers in both directions or one, then a linear layer.
  Trained by `losses.ctc_loss`, for which class 0 is the blank.

  Reads `frames` float `[B, T, F]` and `segments` int `[B, T]`, 0 where there is no frame; one
  recording a row. Gives logits float32 `[B, T, num_classes]`.

  Features: `embedding` `[B, T, dim]`, `layer_0`, ... `[B, T, hidden_dim]` (twice that in both
  directions), `query` (what the last layer multiplies).

  Attributes:
    num_classes: C, the characters and the blank.
    dim: width that frames are brought to.
    hidden_dim: width of every layer's state, or one number a layer; None for `dim`.
    num_layers: recurrent layers.
    bidirectional: whether every layer also reads from the end, its states beside the others.
    dropout: rate before the first layer and after each.
    dtype: of the computation; gates and states stay float32.

  Reference:
    A. Graves, S. Fernandez, F. Gomez, J. Schmidhuber, Connectionist Temporal Classification, ICML
    2006; A. Hannun et al., Deep Speech, 2014, arXiv:1412.5567 (here with gated units).
  """

  num_classes: int
  dim: int = 128
  hidden_dim: int | Sequence[int] | None = None
  num_layers: int = 1
  bidirectional: bool = True
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, batch: Batch) -> Outputs:
    x = batch["frames"].astype(self.dtype)
    x = nn.relu(Dense(self.dim, dtype=self.dtype, name="frame_projection")(x))
    features: dict[str, Array] = {"embedding": x}
    x = recurrent_layers(
      x,
      batch["segments"],
      per_layer(self.hidden_dim or self.dim, self.num_layers),
      bidirectional=self.bidirectional,
      dropout=self.dropout,
      features=features,
    )
    features["query"] = x
    logits = Dense(self.num_classes, dtype=self.dtype, name="out")(x)
    return Outputs(logits.astype(jnp.float32), features)


def make_speech_gru(**sizes: Any) -> Model:
  """A recurrent recogniser of speech as a pair of pure functions.

  Args:
    sizes: the fields of `SpeechGRU`; only `num_classes` has no default.

  Returns:
    Model on batches of frames; `apply` gives float32 logits `[B, T, num_classes]`.

  Raises:
    TypeError: if a size has another name. ValueError: by `init`, if there are more or fewer sizes
      than layers.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> model = make_speech_gru(num_classes=5, dim=8)
    >>> batch = {"frames": jnp.ones([2, 7, 40]), "segments": jnp.ones([2, 7], jnp.int32)}
    >>> params = model.init(jax.random.key(0), batch)
    >>> model.apply(params, batch).logits.shape
    (2, 7, 5)
  """
  return from_linen(SpeechGRU(**sizes))


def speech_gru_axes(sizes: Sizes) -> Params:
  """Names the axes of its params, for `kdjax.prune.shrink`: `dim` and `layer_0/hidden`, ..."""
  module = SpeechGRU(**sizes)
  axes, below = recurrent_axes(module.num_layers, "dim", bidirectional=module.bidirectional)
  return axes | {
    "frame_projection": {"kernel": (None, "dim"), "bias": ("dim",)},
    "out": {"kernel": (below, None), "bias": (None,)},
  }


def speech_gru_sizes(params: Mapping[str, Any], sizes: Sizes) -> Sizes:
  """The sizes with which `make_speech_gru` takes `params` that were shrunk from `sizes`."""
  hidden = recurrent_widths(params)
  dim = params["frame_projection"]["kernel"].shape[1]
  new = {"dim": dim, "hidden_dim": collapse(hidden), "num_layers": len(hidden)}
  return sizes_of(SpeechGRU(**sizes)) | new
