"""Makes torch_compress.npz: golden values of torch, onnxruntime and Torch-Pruning.

The packages are no dependencies of kdjax. Run it where they are installed:
python tests/golden/torch_compress.py
(torch 2.13.0, numpy, onnxruntime 1.31.1, onnx, torch-pruning 1.6.1; all on CPU).
"""

import importlib.metadata
import pathlib
import warnings

import numpy as np
import torch
import torch_pruning
from onnxruntime.quantization.calibrate import HistogramCollector
from torch.ao.quantization.observer import (
  HistogramObserver,
  MinMaxObserver,
  PerChannelMinMaxObserver,
)

warnings.filterwarnings("ignore")
rng = np.random.default_rng(5)
inputs = {
  "x": rng.standard_t(5, size=(3, 4096)).astype(np.float32),  # Three batches with long tails.
  "w": rng.normal(size=(24, 6)).astype(np.float32),
  "cotangent": rng.normal(size=(24, 6)).astype(np.float32),
  "scale": np.exp(rng.normal(size=6) * 0.3).astype(np.float32) * 0.1,
}
# torch clips what rounds to beyond the range, the paper what lies beyond it: nothing between.
between = np.abs(np.abs(inputs["w"] / inputs["scale"]) - 7.25) < 0.5
inputs["w"] = np.where(between, 0.5 * inputs["w"], inputs["w"])
values = {}

# Observers. torch's symmetric int8 goes from -128 to 127 by default; ours, given to it, from -127.
options = dict(dtype=torch.qint8, quant_min=-127, quant_max=127)
per_tensor = MinMaxObserver(qscheme=torch.per_tensor_symmetric, **options)
histogram = HistogramObserver(qscheme=torch.per_tensor_symmetric, bins=2048, **options)
for batch in inputs["x"]:
  per_tensor(torch.tensor(batch))
  histogram(torch.tensor(batch))
values["min_max_scale"] = per_tensor.calculate_qparams()[0].numpy()
values["histogram_scale"] = histogram.calculate_qparams()[0].numpy()
per_channel = PerChannelMinMaxObserver(ch_axis=1, qscheme=torch.per_channel_symmetric, **options)
per_channel(torch.tensor(inputs["w"]))
values["per_channel_scale"] = per_channel.calculate_qparams()[0].numpy()

for percentile in (99.0, 99.9):
  seen = HistogramCollector("percentile", True, 2048, 128, percentile, "same")
  for batch in inputs["x"]:
    seen.collect({"x": [batch]})
  values[f"percentile_{percentile}"] = np.float32(seen.compute_collection_result()["x"][1])
# Both signs share the bins there: twice as many for 128 levels of magnitude.
seen = HistogramCollector("entropy", True, 4096, 256, 99.9, "same")
# Many entries, those of a Laplace distribution: their counts are rounded down to integers.
u = (np.arange(2**20) + 0.5) / 2**20 - 0.5
seen.collect({"x": [(-np.sign(u) * np.log1p(-2 * np.abs(u))).astype(np.float32)]})
values["entropy"] = np.float32(seen.compute_collection_result()["x"][1])

# Learned scales: the gradients of the paper.
w = torch.tensor(inputs["w"], requires_grad=True)
scale = torch.tensor(inputs["scale"], requires_grad=True)
zero = torch.zeros(6, requires_grad=True)
for bits in (8, 4):
  levels = 2 ** (bits - 1) - 1
  factor = 1 / np.sqrt(24 * levels)
  y = torch._fake_quantize_learnable_per_channel_affine(w, scale, zero, 1, -levels, levels, factor)
  grads = torch.autograd.grad(y, (w, scale), torch.tensor(inputs["cotangent"]))
  values[f"learned_{bits}"] = y.detach().numpy()
  values[f"learned_{bits}_dw"], values[f"learned_{bits}_dscale"] = (g.numpy() for g in grads)


class Net(torch.nn.Module):
  """A residual block, a depthwise convolution, a concatenation and a classifier."""

  def __init__(self):
    super().__init__()
    self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
    self.one = torch.nn.Conv2d(8, 12, 3, padding=1)
    self.two = torch.nn.Conv2d(12, 8, 3, padding=1)
    self.deep = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
    self.side = torch.nn.Conv2d(3, 4, 1)
    self.head = torch.nn.Linear(12, 5)

  def forward(self, x):
    y = torch.relu(self.stem(x))
    y = torch.relu(y + self.two(torch.relu(self.one(y))))
    y = torch.relu(self.deep(y))
    y = torch.cat([y, torch.relu(self.side(x))], dim=1)
    return self.head(y.mean((2, 3)))


# Units of clearly different weight, so that no criterion can disagree which of them go.
net = Net()
for parameter in net.parameters():
  parameter.data = torch.tensor(rng.normal(size=parameter.shape) * 0.3, dtype=torch.float32)
with torch.no_grad():
  # Every kernel that belongs to a group says the same of its units; inputs of 1.
  for layers, size in ((("stem", "two", "deep"), 8), (("one",), 12), (("side",), 4)):
    order = torch.tensor(rng.permutation(size) + 1.0, dtype=torch.float32)
    for layer in layers:
      module = getattr(net, layer)
      module.weight *= (order / module.weight.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
      module.bias *= order / order.max() * 0.1
image = torch.tensor(rng.normal(size=(2, 3, 7, 7)), dtype=torch.float32)
for name, parameter in net.named_parameters():
  values[f"net/{name}"] = parameter.detach().numpy().copy()
values["image"] = image.numpy()
values["before"] = net(image).detach().numpy()
pruner = torch_pruning.pruner.BasePruner(
  net,
  image,
  importance=torch_pruning.importance.MagnitudeImportance(
    p=2, normalizer=None, target_types=[torch.nn.Conv2d]
  ),
  pruning_ratio=0.5,
  ignored_layers=[net.head],
)
pruner.step()
for name, parameter in net.named_parameters():
  values[f"shrunk/{name}"] = parameter.detach().numpy()
values["after"] = net(image).detach().numpy()

packages = ("torch", "onnxruntime", "torch-pruning")
versions = np.array([f"{name} {importlib.metadata.version(name)}" for name in packages])
np.savez_compressed(
  pathlib.Path(__file__).with_suffix(".npz"), versions=versions, **inputs, **values
)
print({name: value for name, value in values.items() if value.ndim == 0 or value.size < 8})
print({name: value.shape for name, value in values.items() if name.startswith("shrunk")})
