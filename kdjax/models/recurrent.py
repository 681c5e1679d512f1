"""Recurrent layers (GRU, LSTM), in one direction or both, of GRU4Rec and of encoders."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.layers import Dense, Dropout
from kdjax.models.text_head import known
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
    kernel = _recurrent_kernel(self, gates=3)
    bias = jnp.asarray(self.param("recurrent_bias", nn.initializers.zeros, (3 * size,)))

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
    return _over_positions(step, zero, given, start)


class LSTM(nn.Module):
  r"""One layer of long short-term memory over packed rows, as `GRU`.

  $i = \sigma(x W_i + b_i + h U_i)$, $f = \sigma(x W_f + b_f + h U_f)$,
  $g = \tanh(x W_g + b_g + h U_g)$, $o = \sigma(x W_o + b_o + h U_o)$,
  $c' = f \odot c + i \odot g$, $h' = o \odot \tanh(c')$.

  `input` is `[W_i W_f W_g W_o]` with the biases, $b_f$ 1 at first and others 0; `recurrent_kernel`
  `[H, 4H]` is `[U_i U_f U_g U_o]`. Gates and state are float32.

  Reference:
    S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, Neural Computation 1997. F. Gers et al.,
    Learning to Forget, Neural Computation 2000 (the gate f). R. Jozefowicz et al., An Empirical
    Exploration of Recurrent Network Architectures, ICML 2015 (its bias of 1).
  """

  hidden_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, start: Array) -> Array:
    """`x` float `[B, L, in]`, `start` bool `[B, L]` where a segment starts, to `[B, L, H]`."""
    size, dtype = self.hidden_dim, self.dtype
    given = Dense(4 * size, dtype=dtype, bias_init=_remembers, name="input")(x)
    kernel = _recurrent_kernel(self, gates=4)

    def step(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, Array]:
      gates, fresh = now
      hidden, cell = (jnp.where(fresh[:, None], 0.0, part) for part in state)
      own = dot(hidden.astype(dtype), kernel).astype(jnp.float32)
      takes, keeps, new, tells = jnp.split(gates.astype(jnp.float32) + own, 4, axis=1)
      cell = jax.nn.sigmoid(keeps) * cell + jax.nn.sigmoid(takes) * jnp.tanh(new)
      hidden = jax.nn.sigmoid(tells) * jnp.tanh(cell)
      return (hidden, cell), hidden.astype(dtype)

    zero = vary_as(jnp.zeros([x.shape[0], size], jnp.float32), given, start, kernel)
    return _over_positions(step, (zero, zero), given, start)


CELLS: dict[str, Any] = {"gru": GRU, "lstm": LSTM}
_GATES = {"gru": 3, "lstm": 4}


def _recurrent_kernel(module: Any, *, gates: int) -> Any:
  """A square matrix a gate, side by side, in the type that products are made in."""
  shape = (module.hidden_dim, gates * module.hidden_dim)
  kernel = module.param("recurrent_kernel", _orthogonal_gates, shape)
  return kernel if is_qtensor(kernel) else kernel.astype(module.dtype)


def _over_positions(step: Callable[..., Any], state: Any, given: Array, start: Array) -> Array:
  """Every state `[B, L, H]`, from the first position on."""
  _, states = jax.lax.scan(step, state, (given.swapaxes(0, 1), start.swapaxes(0, 1)))
  return states.swapaxes(0, 1)


def _remembers(key: Array, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
  """Biases that leave an LSTM's memory open at first."""
  del key
  return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1.0)


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
  """Orthogonal matrices side by side."""
  size, orthogonal = shape[0], nn.initializers.orthogonal()
  keys = jax.random.split(key, shape[1] // size)
  gates = jax.vmap(lambda k: orthogonal(k, (size, size), dtype))(keys)
  return gates.swapaxes(0, 1).reshape(shape)


def recurrent_layers(
  x: Array,
  segments: Array,
  widths: Sequence[int],
  *,
  bidirectional: bool,
  dropout: float,
  features: dict[str, Array],
  cell: str = "gru",
) -> Array:
  """Layers `layer_0`, ... of the module that calls, their outputs written into `features`.

  Args:
    x: `[B, L, in]`, of the type to compute in.
    segments: int `[B, L]`; states start at 0 where it changes.
    widths: of every layer's state.
    bidirectional: whether layers `back_0`, ... read from the end, their states beside the others.
    dropout: rate before the first layer and after each.
    features: of the outputs.
    cell: what the layers are: "gru" or "lstm".

  Returns:
    `[B, L, H]`, H of the last layer, twice that in both directions.

  Raises:
    ValueError: if `cell` is none of these.
  """
  layer, dtype = known("cell", cell, CELLS), x.dtype
  x = Dropout(dropout, name="dropout")(x)
  for i, size in enumerate(widths):
    y = layer(size, dtype=dtype, name=f"layer_{i}")(x, _starts(segments))
    if bidirectional:
      back = layer(size, dtype=dtype, name=f"back_{i}")
      z = back(x[:, ::-1], _starts(segments[:, ::-1]))[:, ::-1]
      y = jnp.concatenate([y, z], axis=-1)
    features[f"layer_{i}"] = y
    x = Dropout(dropout, name=f"dropout_{i}")(y)
  return x


def _starts(segments: Array) -> Array:
  """Where another segment begins, padding too: bool `[B, L]`."""
  before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return segments != before


def cell_axes(hidden: str, below: Any, *, cell: str = "gru") -> Params:
  """The axes of a layer of units called `hidden` over the axis `below`."""
  gates = Axis(hidden, repeat=_GATES[cell])
  axes: dict[str, Any] = {
    "input": {"kernel": (below, gates), "bias": (gates,)},
    "recurrent_kernel": (hidden, gates),
  }
  return axes | ({"recurrent_bias": (gates,)} if cell == "gru" else {})


def recurrent_widths(params: Mapping[str, Any]) -> list[int]:
  """The width of every layer `layer_0`, ..."""
  count = sum(name.startswith("layer_") for name in params)
  return [params[f"layer_{i}"]["recurrent_kernel"].shape[0] for i in range(count)]


def recurrent_axes(
  count: int, below: Any, *, bidirectional: bool, cell: str = "gru"
) -> tuple[dict[str, Any], Any]:
  """The axes of `recurrent_layers` over the axis `below`, and that of their output.

  Both directions of a layer lose the same units, so that their states stay of one width.
  """
  axes: dict[str, Any] = {}
  for i in range(count):
    hidden = f"layer_{i}/hidden"
    axes[f"layer_{i}"] = layer = cell_axes(hidden, below, cell=cell)
    below = hidden
    if bidirectional:
      axes[f"back_{i}"] = layer
      below = Axis(hidden, repeat=2)
  return axes, below
