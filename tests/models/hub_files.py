"""What the tests of checkpoint folders share: golden folders, and how to spoil a copy."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from kdjax.models import hub

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def cases(root):
  return sorted(path.name for path in root.iterdir() if path.is_dir())


def change(folder, **config):
  """Sets keys of the config; those that become None are taken out."""
  said = json.loads((folder / "config.json").read_text())
  said |= config
  (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def tensors(folder):
  files = sorted(folder.glob("*.safetensors"))
  return {k: v for file in files for k, v in safetensors.numpy.load_file(file).items()}


def rewrite(folder, change_of):
  found = tensors(folder)
  change_of(found)
  safetensors.numpy.save_file(found, folder / "model.safetensors")


def same(a, b):
  return jax.tree.all(jax.tree.map(jnp.array_equal, a, b))


def check_round_trip(folder, new, shard):
  """What is saved is what was loaded: sizes, params, tensors and config."""
  checkpoint = hub.load(folder)
  hub.save(new, checkpoint, max_shard_bytes=shard)
  again = hub.load(new)
  alike = {"params": None, "left": (), "sizes": {}}
  assert again._replace(**alike) == checkpoint._replace(**alike)
  assert checkpoint.sizes.items() <= again.sizes.items()
  assert same(again.params, checkpoint.params)
  theirs, ours = tensors(folder), tensors(new)
  assert set(theirs) - set(ours) == set(checkpoint.left)
  for key, value in ours.items():
    np.testing.assert_array_equal(value, theirs[key])
  assert json.loads((new / "config.json").read_text()) == checkpoint.config
