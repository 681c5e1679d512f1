"""Makes compressors.npz: golden values of llmcompressor and torchao.

The packages are no dependencies of kdjax. Run it where they are installed:
python tests/golden/compressors.py
(torch 2.13.0, numpy, transformers, llmcompressor 0.14.0, compressed-tensors 0.20.0, torchao 0.18.0;
all on CPU).
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
from torchao.quantization import quant_primitives as primitives

rng = np.random.default_rng(11)
INPUTS, OUTPUTS, ROWS, DAMPING = 32, 6, 96, 0.05

# Few directions and noise, as the inputs of trained layers.
x = rng.normal(size=(ROWS, 5)) @ rng.normal(size=(5, INPUTS)) + 0.5 * rng.normal(
  size=(ROWS, INPUTS)
)
inputs = {
  "x": x.astype(np.float32),
  "weights": rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32),  # As kdjax has them.
  "off_centre": (rng.normal(size=(16, 24)) + 0.7).astype(np.float32),
}
values = {}


def linear():
  module = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
  module.weight.data = torch.tensor(inputs["weights"].T)
  return module


def hessian(module):
  start = sgpt_sparsify.make_empty_hessian(module)
  return sgpt_sparsify.accumulate_hessian(torch.tensor(inputs["x"]), module, start, 0)[0]


for name, sparsity, n, m, block in (
  # What they remove is one more than asked of every block.
  ("half", 0.5 - 0.5 / (INPUTS * OUTPUTS), 0, 0, 128),
  ("half_blocks", 0.5 - 0.5 / (8 * OUTPUTS), 0, 0, 8),
  ("two_of_four", 0.0, 2, 4, 16),
):
  module = linear()
  _, found = sgpt_sparsify.sparsify_weight(
    module, {module: hessian(module)}, sparsity, n, m, block, DAMPING, False
  )
  values[f"sparsegpt_{name}"] = found.detach().numpy().T

module = linear()
scalars = wanda_sparsify.make_empty_row_scalars(module)
for name, sparsity, n, m in (("half", 0.5, 0, 0), ("two_of_four", 0.0, 2, 4)):
  scalars, _ = wanda_sparsify.accumulate_row_scalars(
    torch.tensor(inputs["x"]), module, wanda_sparsify.make_empty_row_scalars(module), 0
  )
  found = wanda_sparsify.sparsify_weight(module, {module: scalars}, sparsity, n, m)
  values[f"wanda_{name}"] = found.detach().numpy().T

w = torch.tensor(inputs["weights"].T)
for bits in (4, 8):
  # Our scales: the rounding is what is compared.
  scale = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
  for order in (None, "weight"):
    args = QuantizationArgs(num_bits=bits, strategy="channel", symmetric=True, actorder=order)
    found, _, fallback = quantize_weight(
      w[None].clone(),
      hessian(linear())[None],
      scale[None],
      torch.zeros_like(scale)[None],
      None,
      args,
      blocksize=16,
      percdamp=DAMPING,
    )
    assert not fallback.any()
    values[f"gptq_{bits}{'_ordered' if order else ''}"] = found[0].numpy().T

y = torch.tensor(inputs["off_centre"])
for bits in (4, 8):
  low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  for group in (8, 24):
    args = ((1, group), torch.int8, low, high)
    scale, zero = primitives.choose_qparams_affine(
      y, primitives.MappingType.ASYMMETRIC, *args, eps=1e-30, zero_point_dtype=torch.int8
    )
    found = primitives.quantize_affine(y, (1, group), scale, zero, torch.int8, low, high)
    back = primitives.dequantize_affine(found, (1, group), scale, zero, torch.int8, low, high)
    shape = (16, 24 // group)
    values[f"affine_{bits}_{group}_scale"] = scale.reshape(shape).numpy()
    values[f"affine_{bits}_{group}_zero"] = zero.reshape(shape).numpy()
    values[f"affine_{bits}_{group}_values"] = found.numpy()
    values[f"affine_{bits}_{group}_back"] = back.numpy()

packages = ("torch", "llmcompressor", "torchao")
np.savez_compressed(
  pathlib.Path(__file__).with_suffix(".npz"),
  **inputs,
  **{f"value_{name}": value for name, value in values.items()},
  packages=np.array([f"{name} {importlib.metadata.version(name)}" for name in packages]),
)
