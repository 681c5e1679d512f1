"""Writes jaxpruner_masks.npz: what jaxpruner's rules give, to compare `kdjax.prune` with.

Its rules are run from a checkout of github.com/google-research/jaxpruner (f133ee5, April 2024),
module by module: the package as a whole no longer runs with current JAX.

  python tests/golden/jaxpruner_masks.py path/to/jaxpruner
"""

import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

SPARSITIES = (0.1, 0.3, 0.7, 0.9)
SHAPES = {"first": (12, 20), "second": (20, 8), "conv": (3, 3, 4, 6)}
STEPS = (2, 40)  # Of the schedule.


def scores() -> dict[str, np.ndarray]:
  """From a seed; the last ones are full of ties."""
  rng = np.random.default_rng(11)
  found = {name: np.abs(rng.normal(size=s)).astype(np.float32) for name, s in SHAPES.items()}
  return found | {"ties": rng.integers(0, 3, (16, 10)).astype(np.float32)}


def main(source: str) -> None:
  """Runs the rules of a checkout."""
  package = types.ModuleType("jaxpruner")
  package.__path__ = [str(pathlib.Path(source) / "jaxpruner")]
  sys.modules["jaxpruner"] = package
  jax.tree_map = jax.tree.map  # As it was called then.
  masks, kinds, distributions, schedules = (
    importlib.import_module(f"jaxpruner.{name}")
    for name in (
      "mask_calculator",
      "sparsity_types",
      "sparsity_distributions",
      "sparsity_schedules",
    )
  )
  found, values = {}, {name: jnp.asarray(value) for name, value in scores().items()}
  flat = {(name,): value for name, value in values.items()}
  for sparsity in SPARSITIES:
    for name, value in values.items():
      found[f"unstructured/{sparsity}/{name}"] = masks.topk_mask_calculator(value, sparsity)
    for name in ("first", "second"):
      block = kinds.Block(block_shape=(4, 2), use_avg_pooling=True)
      found[f"block/{sparsity}/{name}"] = masks.get_topk_fn(block)(values[name], sparsity)
      channel = kinds.Channel(axis=-1)
      found[f"channel/{sparsity}/{name}"] = masks.get_topk_fn(channel)(values[name], sparsity)
    shapes = {key: value.shape for key, value in flat.items()}
    shares = distributions.get_sparsities_erdos_renyi(shapes, sparsity)
    for (name,), share in shares.items():
      found[f"erk/{sparsity}/{name}"] = np.float64(share)
  for name in ("first", "second", "conv"):
    pattern = kinds.NByM(2, 4, axis=0 if name != "conv" else 2)
    found[f"n_m/{name}"] = masks.get_topk_fn(pattern)(values[name], 0.5)
  start, end = STEPS
  schedule = schedules.PolynomialSchedule(1, start, end)
  steps = [schedule.get_sparsity_at_step({"a": 0.8}, step)["a"] for step in range(end)]
  found["cubic"] = np.array(steps, np.float32)
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
  main(sys.argv[1])
