"""Writes torch_prune.json: masks of torch.nn.utils.prune, to compare `kdjax.prune` with.

Run in an environment that has PyTorch: `python tests/golden/torch_prune.py`.
"""

import json
import pathlib

import numpy as np
import torch
from torch.nn.utils import prune

SHAPES = {"first": (12, 20), "second": (20, 7), "conv": (3, 3, 4, 6)}
AMOUNTS = (0.1, 0.33, 0.5, 0.9)


def make_params() -> dict[str, np.ndarray]:
  """The inputs, from a seed."""
  rng = np.random.default_rng(7)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def make_modules(params):
  modules = []
  for name, value in params.items():
    module = torch.nn.Module()
    module.register_parameter("weight", torch.nn.Parameter(torch.tensor(value)))
    modules.append((name, module))
  return modules


def removed(module) -> list[int]:
  """Flat indices of the removed weights."""
  return torch.nonzero(module.weight_mask.flatten() == 0).flatten().tolist()


def main() -> None:
  golden: dict = {"package": "torch", "version": torch.__version__, "l1": {}, "global": {}}
  for amount in AMOUNTS:
    modules = make_modules(make_params())
    for _, module in modules:
      prune.l1_unstructured(module, "weight", amount=amount)
    golden["l1"][str(amount)] = {name: removed(module) for name, module in modules}
    modules = make_modules(make_params())
    prune.global_unstructured(
      [(module, "weight") for _, module in modules], prune.L1Unstructured, amount=amount
    )
    golden["global"][str(amount)] = {name: removed(module) for name, module in modules}
  path = pathlib.Path(__file__).with_suffix(".json")
  path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
