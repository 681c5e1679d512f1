"""Gated recurrent layers, in one direction or both, which GRU4Rec and encoders are made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.layers import Dense, Dropout
from kdjax.prune.shrink import Axis
from kdjax.quant.dot import dot
from kdjax.quant.qtensor import is_qtensor
from kdjax.tree import vary_as
from kdjax.types import Array, Params


class GRU(nn.Module):
  r"""One gated recurrent layer over packed rows; the state starts at 0 in every segment.

  $r = \sigma(x W_r + b_r + h U_r + c_r)$, $z = \sigma(x W_z + b_z + h U_z + c_z)$,
  $n = \tanh(x W_n + b_n + r \odot (h U_n + c_n))$, $h' = (1 - z) \odot n + z \odot h$.

  `input` is `[W_r W_z W_n]` with its biases, applied to all positions in one product;
  `recurrent_kernel` `[H, 3H]` is `[U_r U_z U_n]`, `recurrent_bias` `[3H]` the c. Gates and state
  are float32.

  Reference:
    K. Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014,
    arXiv:1406.1078, with the reset gate after the product, as cuDNN and PyTorch have it.
  """

  hidden_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, start: Array) -> Array:
    """`x` float `[B, L, in]`, `start` bool `[B, L]` where a segment starts, to `[B, L, H]`."""
    size, dtype = self.hidden_dim, self.dtype
    given = Dense(3 * size, dtype=dtype, name="input")(x)
    kernel = self.param("recurrent_kernel", _orthogonal_gates, (size, 3 * size))
    bias = jnp.asarray(self.param("recurrent_bias", nn.initializers.zeros, (3 * size,)))
    kernel = kernel if is_qtensor(kernel) else kernel.astype(dtype)

    def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
      gates, fresh = now
      state = jnp.where(fresh[:, None], 0.0, state)
      own = dot(state.astype(dtype), kernel).astype(jnp.float32) + bias[None]
      gates = gates.astype(jnp.float32)
      reset, update = jnp.split(
        jax.nn.sigmoid(gates[:, : 2 * size] + own[:, : 2 * size]), 2, axis=1
      )
      new = jnp.tanh(gates[:, 2 * size :] + reset * own[:, 2 * size :])
      state = (1 - update) * new + update * state
      return state, state.astype(dtype)

    zero = vary_as(jnp.zeros([x.shape[0], size], jnp.float32), given, start, kernel, bias)
    _, states = jax.lax.scan(step, zero, (given.swapaxes(0, 1), start.swapaxes(0, 1)))
    return states.swapaxes(0, 1)


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
  """Three orthogonal matrices side by side."""
  size, orthogonal = shape[0], nn.initializers.orthogonal()
  gates = jax.vmap(lambda k: orthogonal(k, (size, size), dtype))(jax.random.split(key, 3))
  return gates.swapaxes(0, 1).reshape(shape)


def recurrent_layers(
  x: Array,
  segments: Array,
  widths: Sequence[int],
  *,
  bidirectional: bool,
  dropout: float,
  features: dict[str, Array],
) -> Array:
  """Layers `layer_0`, ... of the module that calls, their outputs written into `features`.

  Args:
    x: `[B, L, in]`, of the type to compute in.
    segments: int `[B, L]`; states start at 0 where it changes.
    widths: of every layer's state.
    bidirectional: whether layers `back_0`, ... read from the end, their states beside the others.
    dropout: rate before the first layer and after each.
    features: of the outputs.

  Returns:
    `[B, L, H]`, H of the last layer, twice that in both directions.
  """
  dtype = x.dtype
  x = Dropout(dropout, name="dropout")(x)
  for i, size in enumerate(widths):
    y = GRU(size, dtype=dtype, name=f"layer_{i}")(x, _starts(segments))
    if bidirectional:
      back = GRU(size, dtype=dtype, name=f"back_{i}")
      z = back(x[:, ::-1], _starts(segments[:, ::-1]))[:, ::-1]
      y = jnp.concatenate([y, z], axis=-1)
    features[f"layer_{i}"] = y
    x = Dropout(dropout, name=f"dropout_{i}")(y)
  return x


def _starts(segments: Array) -> Array:
  """Where another segment begins, padding too: bool `[B, L]`."""
  before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return segments != before


def gru_axes(hidden: str, below: Any) -> Params:
  """The axes of a `GRU` of units called `hidden` over the axis `below`."""
  gates = Axis(hidden, repeat=3)
  return {
    "input": {"kernel": (below, gates), "bias": (gates,)},
    "recurrent_kernel": (hidden, gates),
    "recurrent_bias": (gates,),
  }


def gru_widths(params: Mapping[str, Any]) -> list[int]:
  """The width of every layer `layer_0`, ..."""
  count = sum(name.startswith("layer_") for name in params)
  return [params[f"layer_{i}"]["recurrent_kernel"].shape[0] for i in range(count)]


def recurrent_axes(count: int, below: Any, *, bidirectional: bool) -> tuple[dict[str, Any], Any]:
  """The axes of `recurrent_layers` over the axis `below`, and that of their output.

  Both directions of a layer lose the same units, so that their states stay of one width.
  """
  axes: dict[str, Any] = {}
  for i in range(count):
    hidden = f"layer_{i}/hidden"
    axes[f"layer_{i}"] = layer = gru_axes(hidden, below)
    below = hidden
    if bidirectional:
      axes[f"back_{i}"] = layer
      below = Axis(hidden, repeat=2)
  return axes, below
