"""--embedding: models whose tables are made of smaller ones, through all binaries."""

import dataclasses

import numpy as np
import pytest
import tiny

from experiments import distill, prune, quantize, stored, train
from experiments.config import PruneConfig
from experiments.families import make_model
from kdjax.quant import is_qtensor
from kdjax.serve import make_recommender

WAYS = {
  "hashed": {"embedding": "hashed", "embedding_rows": 7},
  "sum": {"embedding": "quotient_remainder"},
  "product": {"embedding": "quotient_remainder", "embedding_product": True},
}


def config_of(family, way, **fit):
  config = tiny.train_config(family, **fit)
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **WAYS[way]))


def saved(folder):
  return stored.load_model(folder, flag="--workdir")


@pytest.mark.parametrize(
  ("family", "way"),
  [("sasrec", "product"), ("gru4rec", "hashed"), ("two_tower", "hashed"), ("mf", "sum"),
   ("ncf", "product")],
)  # fmt: skip
def test_trained_and_quantized(tmp_path, family, way):
  result = train.run(config_of(family, way), tmp_path / "small")
  assert result["training"]["best_valid"] > 0
  found = quantize.run(quantize.Config(str(tmp_path / "small")), tmp_path / "int8")
  assert found["size"]["bytes"] < result["size"]["bytes"]
  table = saved(tmp_path / "int8").params["item_gmf" if family == "ncf" else "item_embedding"]
  assert all(map(is_qtensor, table.values()))


def test_pruned(tmp_path):
  train.run(config_of("mf", "product"), tmp_path / "small")
  config = prune.Config(
    model_dir=str(tmp_path / "small"), prune=PruneConfig(sparsity=0.5, keep_dim=0.5), fit=tiny.FIT
  )
  result = prune.run(config, tmp_path / "pruned")
  assert result["training"]["sparsity"] == pytest.approx(0.5, abs=0.02)
  widths = [x.shape[1] for x in saved(tmp_path / "pruned").params["item_embedding"].values()]
  assert widths == [8, 8]


def test_a_student_of_small_tables_learns_from_a_teacher_of_whole_ones(tmp_path, trained):
  config = tiny.distill_config(trained(), distill_losses=("kl:1", "hint@item:0.1"))
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **WAYS["sum"]))
  distill.run(config, tmp_path)
  model = saved(tmp_path)
  assert {name: x.shape for name, x in model.params["item_embedding"].items()} == {
    "quotient_embedding": (6, 8),
    "remainder_embedding": (7, 8),
  }
  recommend = make_recommender(make_model(model.family, model.sizes).apply, k=5)
  scores, ids = recommend(model.params, np.array([[3, 5, -1], [0, -1, -1]]))
  assert np.isfinite(scores).all()
  assert not set(np.asarray(ids)[0].tolist()) & {3, 5}


def test_trained_through_integers_and_as_a_teacher(tmp_path):
  config = config_of("sasrec", "hashed", train_bits=8)
  train.run(config, tmp_path / "teacher")
  student = tiny.distill_config(tmp_path / "teacher")
  distill.run(student, tmp_path / "student")


@pytest.mark.parametrize(
  ("family", "options", "message"),
  [
    ("bert4rec", {"embedding": "hashed"}, "--embedding=hashed does not fit --model=bert4rec"),
    ("bert", {"embedding": "hashed"}, "--embedding=hashed does not fit --model=bert"),
    ("sasrec", {"embedding": "hashed", "embedding_rows": 40}, "--embedding_rows.*save nothing"),
    ("mf", {"embedding": "hashed", "embedding_product": True}, "hashed rows are summed"),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, family, options, message):
  config = tiny.train_config(family)
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
  with pytest.raises(ValueError, match=message):
    train.run(config, tmp_path)


def test_small_tables_need_no_lazy_updates(tmp_path):
  with pytest.raises(ValueError, match="--embedding, whose tables are small"):
    train.run(config_of("mf", "sum", lazy_tables=True), tmp_path)
