"""A precision for every leaf: measured costs, and choices near the optimum of all choices."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import quant
from kdjax.quant.mixed import Sensitivity

NAMES = ("float32", "bfloat16", "int8", "int4")


def instance(rng, leaves):
  found = []
  for leaf in range(leaves):
    size = int(rng.integers(10, 100))
    increases = np.cumsum(rng.exponential(size=4) * rng.integers(0, 2, size=4))
    for name, nbytes, increase in zip(NAMES, (32, 16, 8, 4), increases - increases[0], strict=True):
      found.append(Sensitivity(f"leaf{leaf}", name, size * nbytes, float(increase)))
  return found


def totals(found, chosen):
  picked = [s for s in found if chosen[s.path] == s.precision]
  return sum(s.nbytes for s in picked), sum(max(0.0, s.increase) for s in picked)


def every_choice(found):
  leaves = sorted({s.path for s in found})
  for names in itertools.product(NAMES, repeat=len(leaves)):
    yield totals(found, dict(zip(leaves, names, strict=True)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.13, 1.0))
def test_within_one_step_of_the_best_of_all_choices(seed, share):
  found = instance(np.random.default_rng(seed), 4)
  largest = sum(s.nbytes for s in found if s.precision == "float32")
  limit = int(share * largest)
  nbytes, increase = totals(found, quant.choose_precisions(found, max_bytes=limit))
  assert nbytes <= limit
  best = min(loss for size, loss in every_choice(found) if size <= limit)
  # One step of one leaf at most: from its largest to its smallest precision.
  worst = max(s.increase for s in found)
  assert best <= increase + 1e-9 <= best + worst + 2e-9

  nbytes, increase = totals(found, quant.choose_precisions(found, max_increase=best))
  assert increase <= best + 1e-12
  smallest = min(size for size, loss in every_choice(found) if loss <= best + 1e-12)
  assert smallest <= nbytes <= smallest + max(s.nbytes for s in found)


def test_limits_are_checked():
  found = instance(np.random.default_rng(0), 2)
  with pytest.raises(ValueError, match="either"):
    quant.choose_precisions(found)
  with pytest.raises(ValueError, match="the smallest precisions take"):
    quant.choose_precisions(found, max_bytes=1)
  with pytest.raises(ValueError, match="NaN"):
    quant.choose_precisions([found[0]._replace(increase=float("nan"))], max_bytes=10**6)
  with pytest.raises(ValueError, match="int3"):
    quant.mixed_params({"a": jnp.ones([2, 2])}, {"a": "int3"})
  with pytest.raises(ValueError, match="no leaf"):
    quant.mixed_params({"a": jnp.ones([2, 2])}, {"b": "int8"})


def test_the_sensitive_leaf_keeps_its_bits():
  rng = np.random.default_rng(0)
  params = {
    "calm": jnp.asarray(rng.normal(size=(64, 32)), jnp.float32),
    "loud": jnp.asarray(rng.normal(size=(64, 32)) * 10, jnp.float32),
    "bias": jnp.zeros(32),
  }
  x = jnp.asarray(rng.normal(size=(128, 64)), jnp.float32)
  apply_fn = lambda p: x @ jnp.asarray(p["calm"]) + x @ jnp.asarray(p["loud"])  # noqa: E731
  target = apply_fn(params)
  loss_fn = lambda p: jnp.mean((apply_fn(p) - target) ** 2)  # noqa: E731
  found = quant.measure_sensitivity(loss_fn, params)
  assert {s.path for s in found} == {"calm", "loud"}
  by = {(s.path, s.precision): s for s in found}
  assert by["loud", "int4"].increase > 50 * by["calm", "int4"].increase
  assert by["loud", "int4"].nbytes == 64 * 32 // 2 + 32 * 4
  assert by["calm", "bfloat16"].nbytes == 2 * 64 * 32
  for one in found:  # What was measured is what a rounded leaf costs.
    mixed = quant.mixed_params(params, {one.path: one.precision})
    np.testing.assert_allclose(loss_fn(mixed), one.increase, rtol=1e-3, atol=1e-9)
  chosen = quant.choose_precisions(found, max_bytes=3500)
  assert chosen == {"calm": "int4", "loud": "int8"}
  mixed = quant.mixed_params(params, chosen)
  assert loss_fn(mixed) < 0.2 * loss_fn(quant.quantize_params(params, bits=4))
