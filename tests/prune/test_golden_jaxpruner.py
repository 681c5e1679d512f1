"""Masks, distributions and schedules by the rules of jaxpruner (see tests/golden)."""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.prune.distributions import erdos_renyi_kernel
from kdjax.prune.masks import make_masks
from kdjax.prune.patterns import block, n_m, unstructured
from kdjax.prune.schedules import cubic

FILE = pathlib.Path(__file__).parents[1] / "golden" / "jaxpruner_masks.py"
spec = importlib.util.spec_from_file_location("jaxpruner_masks", FILE)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
SCORES = {name: jnp.asarray(value) for name, value in script.scores().items()}
sparsities = pytest.mark.parametrize("sparsity", script.SPARSITIES)


@pytest.fixture(scope="module")
def golden():
  with np.load(FILE.with_suffix(".npz")) as found:
    return dict(found)


@sparsities
@pytest.mark.parametrize("name", list(SCORES))
def test_unstructured(golden, name, sparsity):
  """The same weights, also where many scores are equal: the earlier ones stay."""
  scores = SCORES[name]
  mask = unstructured(scores, round(sparsity * scores.size))
  np.testing.assert_array_equal(mask, golden[f"unstructured/{sparsity}/{name}"].astype(bool))


@sparsities
@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("kind", ["block", "channel"])
def test_blocks_and_channels(golden, kind, name, sparsity):
  scores = SCORES[name]
  shape = (4, 2) if kind == "block" else (scores.shape[0], 1)
  whole = int(np.prod(shape))
  count = round(sparsity * (scores.size // whole)) * whole
  expected = golden[f"{kind}/{sparsity}/{name}"].astype(bool)
  np.testing.assert_array_equal(block(*shape)(scores, count), expected)


@pytest.mark.parametrize("name", ["first", "second", "conv"])
def test_n_m(golden, name):
  """Along the contraction; jaxpruner takes another axis unless told."""
  masks = make_masks({"kernel": SCORES[name]}, sparsity=0.5, pattern=n_m(2, 4))
  np.testing.assert_array_equal(masks["kernel"], golden[f"n_m/{name}"].astype(bool))


@sparsities
def test_erdos_renyi_kernel(golden, sparsity):
  """Its shares are rounded down to weights before they are solved for: one weight a leaf."""
  counts = erdos_renyi_kernel(list(SCORES.values()), sparsity)
  total = sum(scores.size for scores in SCORES.values())
  for (name, scores), count in zip(SCORES.items(), counts, strict=True):
    expected = golden[f"erk/{sparsity}/{name}"] * scores.size
    assert abs(int(count) - expected) <= 2 + 0.002 * total


def test_cubic(golden):
  """Its steps are one ahead of the paper's: ours of the step after."""
  start, end = script.STEPS
  schedule = cubic(0.8, start=start, end=end)
  ours = [float(schedule.sparsity(step + 1)) for step in range(start, end)]
  np.testing.assert_allclose(ours, golden["cubic"][start:], atol=1e-6)
