"""Models that are split over devices are judged there, by all of them, to the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import evaluate, families, meshes, problems
from experiments.config import FitConfig, MeshConfig

SPLIT = MeshConfig(data_devices=2, fsdp_devices=2, model_devices=2)
FAMILIES = ("sasrec", "gru4rec", "two_tower", "mf", "ncf", "mlp", "resnet", "bert", "decoder")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_judges_on_a_mesh(family):
  task = problems.make_task(tiny.data_for(family), family)
  sizes = families.model_sizes(dataclasses.replace(tiny.STUDENT, model=family), task)
  model = families.make_model(family, sizes)
  rows = {name: jnp.asarray(values[:2]) for name, values in task.arrays.items()}
  if (draw := task.augment(FitConfig(num_negatives=4))) is not None:
    rows = draw(rows, jax.random.key(1))
  params = model.init(jax.random.key(0), rows)
  alone = task.judge(*meshes.placed(model.apply, params, None), "test")
  split = task.judge(*meshes.placed(model.apply, params, meshes.mesh_of(SPLIT)), "test")
  assert alone.per_case.keys() == split.per_case.keys()
  for name, values in alone.per_case.items():
    np.testing.assert_allclose(split.per_case[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
  assert split.scalars == pytest.approx(alone.scalars, rel=1e-5)
  if alone.top_k is not None:
    np.testing.assert_array_equal(split.top_k, alone.top_k)
  cases = np.arange(3)
  np.testing.assert_allclose(split.scores(cases), alone.scores(cases), rtol=1e-5, atol=1e-5)


def test_models_are_compared_on_a_mesh(trained, tmp_path):
  models = str(trained("sasrec")), str(trained("gru4rec"))
  config = evaluate.Config(models, requests=2, batches=1, sampled_negatives=5, print_table=False)
  alone, split = (
    evaluate.run(dataclasses.replace(config, mesh=mesh), tmp_path / name)["rows"]
    for name, mesh in (("alone", config.mesh), ("split", SPLIT))
  )
  for one, other in zip(alone, split, strict=True):
    assert other["sampled"] == pytest.approx(one["sampled"], rel=1e-5)
    assert other["cost"].keys() == one["cost"].keys()
  assert split[1]["agreement"] == pytest.approx(alone[1]["agreement"], rel=1e-5)
