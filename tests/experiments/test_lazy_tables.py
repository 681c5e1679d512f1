"""--lazy_tables: the same training by rows, and clear words where it does not fit."""

import dataclasses

import numpy as np
import pytest
import tiny

from experiments import distill, fitting, prune, stored, train
from experiments.config import DistillConfig
from kdjax.train import loop
from kdjax.train.writers import read_jsonl
from kdjax.tree import leaves_with_path


def trained(folder, family, **fit):
  config = tiny.train_config(family, clip_norm=1.0, **fit)
  # Dropout of a whole item tower draws other bits than that of a few of its rows.
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
  result = train.run(config, folder)
  return result, dict(leaves_with_path(stored.load_model(folder, flag="--workdir").params))


@pytest.mark.parametrize(
  ("family", "label_loss"),
  [("mf", "bpr"), ("ncf", "bce"), ("sasrec", "sampled_softmax"), ("two_tower", "bce"),
   ("bert4rec", "nce"), ("gru4rec", "bpr")],
)  # fmt: skip
def test_trains_what_whole_tables_train(tmp_path, family, label_loss):
  found = [
    trained(tmp_path / str(lazy), family, label_loss=label_loss, lazy_tables=lazy)
    for lazy in (False, True)
  ]
  (dense, params), (lazy, by_rows) = found
  for path, value in params.items():
    np.testing.assert_allclose(by_rows[path], value, atol=2e-3, err_msg="/".join(path))
  value = lambda result: result["training"]["best_valid"]  # noqa: E731
  assert value(lazy) == pytest.approx(value(dense), abs=0.02)


def test_resumes_bit_for_bit_over_split_tables(tmp_path, monkeypatch):
  options = {"lazy_tables": True, "data_devices": 2, "model_devices": 4, "validate_every": 3}
  _, whole = trained(tmp_path / "whole", "mf", **options)
  fit = loop.fit

  def stopped(*args, **more):
    fit(*args, **more | {"num_steps": 5})
    raise loop.Interrupted

  monkeypatch.setattr(fitting.loop, "fit", stopped)
  with pytest.raises(loop.Interrupted):
    trained(tmp_path / "half", "mf", **options)
  monkeypatch.setattr(fitting.loop, "fit", fit)
  _, resumed = trained(tmp_path / "half", "mf", **options)
  for path, value in whole.items():
    np.testing.assert_array_equal(resumed[path], value, err_msg="/".join(path))


def test_a_student_of_pairs_learns_from_a_teacher(tmp_path, trained):
  fit = dataclasses.replace(tiny.FIT, lazy_tables=True)
  config = tiny.distill_config(trained("mf"), "mf", fit, distill_losses=("kl:1", "hint@item:0.1"))
  assert distill.run(config, tmp_path)["training"]["steps"] > 0


def test_a_cached_teacher_whose_rest_is_sampled(tmp_path, trained):
  """Then nothing of a step grows with the catalogue; the numbers are those of whole tables."""
  losses = []
  for lazy in (False, True):
    fit = dataclasses.replace(tiny.FIT, lazy_tables=lazy, label_loss="sampled_softmax")
    config = tiny.distill_config(trained(), fit=fit, cache_top_k=3, sampled_rest=True)
    model = dataclasses.replace(config.model, dropout=0.0)
    distill.run(dataclasses.replace(config, model=model), tmp_path / str(lazy))
    lines = read_jsonl(tmp_path / str(lazy) / "metrics.jsonl")
    losses.append([line["train/distill_kl"] for line in lines if "train/distill_kl" in line])
  assert losses[1] == pytest.approx(losses[0], rel=1e-3)
  assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize(
  ("family", "options", "message"),
  [
    ("sasrec", {}, "use one of sampled_softmax, bpr"),
    ("mlp", {}, "no tables of users or items"),
    ("mf", {"optimizer": "sgd"}, "--optimizer=sgd: use adam or adamw"),
    ("mf", {"parallel": "pmap"}, "--parallel=pmap"),
    ("mf", {"train_bits": 8}, "--train_bits"),
    ("mf", {"lora_rank": 2}, "--lora_rank"),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, family, options, message):
  with pytest.raises(ValueError, match=message):
    train.run(tiny.train_config(family, lazy_tables=True, **options), tmp_path)


def test_teachers_of_whole_catalogues_and_pruning_are_refused(tmp_path, trained):
  fit = dataclasses.replace(tiny.FIT, lazy_tables=True, label_loss="bpr")
  with pytest.raises(ValueError, match="compared over the whole catalogue"):
    distill.run(tiny.distill_config(trained(), fit=fit), tmp_path / "distilled")
  config = prune.Config(model_dir=str(trained("mf")), distill=DistillConfig(), fit=fit)
  with pytest.raises(ValueError, match="does not go with pruning"):
    prune.run(config, tmp_path / "pruned")
