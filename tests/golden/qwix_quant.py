"""Makes qwix_quant.npz: golden values of qwix, the JAX library for quantization.

The package is no dependency of kdjax. Run it where it is installed:
python tests/golden/qwix_quant.py
(qwix 0.1.8, jax 0.10.2, numpy; all on CPU).
"""

import importlib.metadata
import pathlib

import jax.numpy as jnp
import numpy as np
from qwix import dot_general
from qwix._src.core import qarray
from qwix.contrib import awq_core, gptq_core, smooth_quant

# What compressors.npz was made from: weights [inputs, outputs] and their inputs.
folder = pathlib.Path(__file__).parent
inputs = np.load(folder / "compressors.npz", allow_pickle=False)
x, weights = jnp.asarray(inputs["x"]), jnp.asarray(inputs["weights"])
values = {}


def how(bits, channels, group=None, axis=1):
  """Symmetric, with the largest entry at 127 (or 7) and not, as is their default, at 127.5."""
  bound = 2 ** (bits - 1) - 1
  return qarray.HowToQuantize(
    qtype=jnp.int8 if bits == 8 else jnp.int4,
    channelwise_axes=(channels,),
    tiled_axes={} if group is None else {axis: group},
    calibration_method=f"absmax,{(bound + 0.5) / bound}",
  )


for bits in (8, 4):
  for group in (None, 8):
    name = f"{bits}_{group}"
    q = qarray.quantize(weights, how(bits, 1, group, axis=0))
    values[f"nearest_{name}"] = q.qvalue.astype(jnp.int8)
    values[f"scale_{name}"] = q.scale
    q, _ = gptq_core.quantize_weight(
      weights.T, gptq_core.compute_hessian(x.T), how(bits, 0, group), percdamp=0.05
    )
    values[f"gptq_{name}"] = qarray.dequantize(q).T

q, factors = awq_core.quantize_weight(weights.T, awq_core.compute_act_scale(x), how(4, 0))
values["awq"] = (qarray.dequantize(q) / factors).T
values["smooth"] = smooth_quant.compute_scales_ratio(
  jnp.max(jnp.abs(x), axis=0), jnp.max(jnp.abs(weights), axis=1), 0.5
)
values["dot"] = dot_general(
  qarray.quantize(x, how(8, 0)), qarray.quantize(weights, how(8, 1)), (((1,), (0,)), ((), ()))
)
np.savez(
  folder / "qwix_quant.npz",
  version=np.array(f"qwix {importlib.metadata.version('qwix')}"),
  **{f"value_{name}": np.asarray(value) for name, value in values.items()},
)
