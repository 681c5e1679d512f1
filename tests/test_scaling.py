"""The formulas of a step on many devices, against models, programs and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, scaling
from kdjax.data import batches
from kdjax.tree import count_params

SIZES = scaling.Sizes(items=1000, dim=16, layers=2, mlp_dim=24, length=8)
JOB = scaling.Job(SIZES, rows=64, teacher=SIZES._replace(dim=32))
SPLIT = scaling.Split(data=2, fsdp=4, model=8)


def test_numbers_are_those_of_the_model():
  model = models.make_sasrec(num_items=1000, max_length=8, dim=16, num_layers=2, mlp_dim=24)
  batch = {k: jnp.asarray(v) for k, v in batches.complete(np.zeros([1, 8], np.int32)).items()}
  params = jax.eval_shape(model.init, jax.random.key(0), batch)
  assert count_params(params) == SIZES.table + SIZES.body


def test_meshes():
  found = scaling.splits(24)
  assert all(split.devices == 24 for split in found)
  assert scaling.Split(3, 2, 4) in found
  assert len(set(found)) == len(found)
  with pytest.raises(ValueError, match="at least one device"):
    scaling.splits(0)


def test_one_device_sends_nothing():
  assert scaling.transfers(JOB, scaling.Split()) == []


def test_a_ring_sends_what_the_formula_says():
  gradients = scaling.transfers(JOB._replace(teacher=None), scaling.Split(data=4))
  assert [t.kind for t in gradients] == ["all-reduce", "all-gather"]
  numbers = SIZES.table + SIZES.body
  assert gradients[0].sent(scaling.Split(data=4)) == pytest.approx(2 * 3 / 4 * 4 * numbers)


def test_no_table_travels_over_the_model_axis():
  few, many = (
    sum(t.payload for t in scaling.transfers(JOB._replace(student=s), scaling.Split(model=8)))
    for s in (SIZES, SIZES._replace(items=10**9))
  )
  assert few == many


@pytest.mark.parametrize("axis", ["fsdp", "model"])
def test_state_is_split(axis):
  one, eight = (
    scaling.memory(JOB, split) for split in (scaling.Split(), scaling.Split(**{axis: 8}))
  )
  for name in ("parameters", "optimizer"):
    assert eight[name] == pytest.approx(one[name] / 8)
  assert eight["teacher"] < one["teacher"]


def test_work_is_shared_whatever_the_mesh():
  assert scaling.flops(JOB, SPLIT) == pytest.approx(scaling.flops(JOB, scaling.Split()) / 64)


def test_slow_links_are_waited_for():
  near = scaling.Hardware("near", 1e9, 1e9, 1e12, 1.0, 1e9, group=64, far=1e7)
  far = near._replace(group=8)
  split = scaling.Split(data=64)
  times = [scaling.estimate(JOB, split, hardware).seconds["network"] for hardware in (near, far)]
  assert times[1] > times[0]
  # Gradients twice around, and the gradients of what was looked up, with its ids, once.
  sent = 2 * 4 * (SIZES.table + SIZES.body) + 4 * JOB.rows * SIZES.length * (SIZES.dim + 2)
  assert times[0] == pytest.approx(sent * 63 / 64 / 1e9)
  assert times[1] == pytest.approx(sent * 7 / 8 / 1e9 + sent / 8 * 7 / 8 / 1e7)


def test_the_best_mesh_fits_and_none_is_quicker():
  hardware = scaling.Hardware("small", 4e6, 1e9, 1e12, 1.0, 1e9, 8, 1e8)
  job = JOB._replace(student=SIZES._replace(items=50_000), teacher=None)
  assert scaling.best_split(job, 2, hardware) is None
  hardware = hardware._replace(memory=6e7)
  best = scaling.best_split(job, 8, hardware)
  assert best is not None
  assert best.memory <= 0.9 * hardware.memory
  for split in scaling.splits(8):
    other = scaling.estimate(job, split, hardware)
    if other.memory <= 0.9 * hardware.memory:
      assert sum(best.seconds.values()) <= sum(other.seconds.values()) + 1e-12


@pytest.mark.parametrize("split", [scaling.Split(2, 1, 4), scaling.Split(1, 4, 1)])
def test_a_compiled_step_sends_and_keeps_what_the_formulas_say(split):
  from benchmarks.scaling import ROWS, STUDENT, TEACHER, measure

  row = measure(scaling.Job(STUDENT, ROWS, TEACHER), split)
  assert row["sent"] == pytest.approx(row["sent_formula"], rel=0.02)
  assert row["memory"] == pytest.approx(row["memory_formula"], rel=0.12)
