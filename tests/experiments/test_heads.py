"""One body and several heads: logits as without, each head learned, pruned, quantised, judged."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from experiments import (
  distill,
  evaluate,
  families,
  head_terms,
  problems,
  prune,
  quantize,
  stored,
  train,
)
from experiments.config import PruneConfig
from kdjax import models, quant
from kdjax.train.writers import read_jsonl
from kdjax.types import FactoredLogits

ALL = {"profile_dim": 16, "similarity_dim": 6, "demand": True}
LOSSES = ("kl:0.5", "profile:1", "similarity:1", "demand:1")


def test_heads_change_no_logit_and_are_linear():
  rng = np.random.default_rng(0)
  row = jnp.asarray(rng.integers(0, 9, (2, 5)))
  batch = {"items": row, "segments": row * 0 + 1, "positions": jnp.arange(5)[None] + row * 0}
  plain = models.make_sasrec(num_items=9, max_length=5, dim=8)
  model = models.with_heads(plain, **ALL)
  params = model.init(jax.random.key(0), batch)
  heads = params["heads"]
  outputs = model.apply(params, batch)
  alone = plain.apply({k: v for k, v in params.items() if k != "heads"}, batch)
  np.testing.assert_array_equal(outputs.logits.dense(), alone.logits.dense())
  table = np.asarray(outputs.logits.table)
  for name, x, shape in (
    ("profile", np.asarray(outputs.logits.query), (2, 5, 16)),
    ("similarity", table, (9, 6)),
    ("demand", table, (9,)),
  ):
    expected = x @ np.asarray(heads[name]["kernel"]) + np.asarray(heads[name]["bias"])
    assert outputs.features[name].shape == shape
    np.testing.assert_allclose(outputs.features[name], expected.reshape(shape), atol=1e-5)
  assert models.split_heads({"dim": 8, **ALL}) == ({"dim": 8}, ALL)


def test_nearest_items_and_scores_by_hand():
  rows = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0.1]])
  assert head_terms.nearest(rows, 2).tolist() == [[1, 2], [0, 2], [1, 3], [2, 1]]
  found = head_terms.scores(
    {"demand": np.array([0.1, 3, 2, 0])}, np.array([0]), np.array([1]), np.array([1, 9, 5, 0])
  )
  assert found == {"demand_spearman": pytest.approx(1.0)}
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(30, 5))
  last, targets = rng.integers(0, 30, (2, 40))
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  near = np.argsort(-(unit @ unit.T - 9 * np.eye(30)), axis=1)[:, :10]
  expected = np.mean([target in near[item] for item, target in zip(last, targets, strict=True)])
  found = head_terms.scores({"similarity": rows}, last, targets, np.zeros(30))
  assert found == {"similar_hit@10": pytest.approx(expected)}


def test_a_head_that_is_the_teacher_agrees_with_it():
  rng = np.random.default_rng(0)
  query, table = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (6, 20))
  teacher = FactoredLogits(query, table)
  demand = np.log(np.asarray(jax.nn.softmax(teacher.dense(), axis=-1)).sum(axis=0))
  found = head_terms.agreement(
    {"profile": 3 * query, "similarity": table, "demand": demand}, teacher
  )
  assert found == {
    "profile_cosine": pytest.approx(1.0),
    "similar_overlap@10": 1.0,
    "demand_agreement": pytest.approx(1.0),
  }


def test_heads_learn_and_stay_through_pruning_and_int8(trained, tmp_path):
  model = dataclasses.replace(tiny.STUDENT, **ALL)
  fit = dataclasses.replace(tiny.FIT, epochs=12, patience=None, learning_rate=3e-2)
  config = tiny.distill_config(trained(), fit=fit, distill_losses=LOSSES, balance="uncertainty")
  config = dataclasses.replace(config, model=model)
  result = distill.run(config, tmp_path / "student")
  lines = read_jsonl(tmp_path / "student" / "metrics.jsonl")
  for name in ("profile", "similarity", "demand"):
    assert lines[-1][f"train/{name}"] < lines[0][f"train/{name}"]
  assert {"similar_hit@10", "demand_spearman"} <= set(result["quality"])
  saved = stored.load_model(tmp_path / "student", flag="--")
  assert set(saved.params["heads"]) == {"profile", "similarity", "demand"}
  options = PruneConfig(sparsity=0.0, keep_dim=0.5)
  config = prune.Config(str(tmp_path / "student"), prune=options, fit=tiny.FIT)
  prune.run(config, tmp_path / "small")
  quantize.run(quantize.Config(str(tmp_path / "small")), tmp_path / "int8")
  heads = stored.load_model(tmp_path / "int8", flag="--").params["heads"]
  assert quant.is_qtensor(heads["profile"]["kernel"])
  assert heads["profile"]["kernel"].shape == (4, 16)
  folders = [str(trained()), *(str(tmp_path / name) for name in ("student", "int8"))]
  config = evaluate.Config(tuple(folders), ("teacher", "student", "int8"), requests=5, batches=2)
  rows = evaluate.run(config, tmp_path / "eval")["rows"]
  assert "profile_cosine" not in rows[0].get("agreement", {})
  float_says, int8_says = (row["agreement"]["profile_cosine"] for row in rows[1:])
  assert float_says > 0.3
  assert -1 <= int8_says <= 1
  assert json.loads((tmp_path / "eval" / "result.json").read_text())["rows"][1]["agreement"]


def test_demand_is_the_sum_of_the_teachers_probabilities(trained, tmp_path):
  """With a body that stays, the head alone learns what the teacher predicts of all users."""
  fit = dataclasses.replace(tiny.FIT, epochs=12, learning_rate=3e-2)
  config = tiny.distill_config(trained(), fit=fit, label_weight=0.0, distill_losses=("demand:1",))
  config = dataclasses.replace(config, model=dataclasses.replace(tiny.STUDENT, demand=True))
  distill.run(config, tmp_path)
  task = problems.make_task(tiny.DATA, "sasrec")
  judged = []
  for folder in (trained(), tmp_path):
    saved = stored.load_model(folder, flag="--")
    apply = families.make_model(saved.family, saved.sizes).apply
    judged.append(task.judge(apply, saved.params, "test"))
  share = np.asarray(jax.nn.softmax(judged[0].queries.dense(), axis=-1)).sum(axis=0)
  assert stats.spearmanr(judged[1].heads["demand"], share).statistic > 0.5


def test_what_does_not_fit_is_named(trained, tmp_path):
  config = tiny.distill_config(trained(), distill_losses=("profile:1",))
  with pytest.raises(
    ValueError, match="profile needs a student with that head: give --profile_dim"
  ):
    distill.run(config, tmp_path / "a")
  config = dataclasses.replace(config, model=dataclasses.replace(tiny.STUDENT, profile_dim=5))
  with pytest.raises(ValueError, match="--profile_dim=5: the teacher's has 16"):
    distill.run(config, tmp_path / "b")
  for family in ("two_tower", "static"):
    model = dataclasses.replace(tiny.STUDENT, model=family, demand=True)
    with pytest.raises(ValueError, match=f"--demand does not fit --model={family}"):
      train.run(train.Config(tiny.data_for(family), model, tiny.FIT), tmp_path / family)
