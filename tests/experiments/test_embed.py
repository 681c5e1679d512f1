"""Texts of items into a recommender: embeddings, the teacher that reads them, cold items."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import distill, embed, problems, prune, quantize, stored, train
from experiments.config import DataConfig, DistillConfig, ModelConfig, PruneConfig
from experiments.ranking import cold_start
from kdjax import serve
from kdjax.data import tokens
from kdjax.data.errors import DataError
from kdjax.metrics import ranks
from kdjax.models import hub, make_bert

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "transformers_bert"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
  """A log whose items have titles, and an encoder with its tokenizer."""
  folder = tmp_path_factory.mktemp("log")
  rng = np.random.default_rng(0)
  lines = [f"{user} {item}" for user in range(60) for item in rng.permutation(30)[:8]]
  (folder / "log.txt").write_text("\n".join(lines) + "\n")
  titles = [f"{i}\t{'red' if i % 2 else 'blue'} thing number {i}" for i in range(29)]
  (folder / "titles.tsv").write_text("item\ttitle\n" + "\n".join(titles) + "\n29\t\n")
  encoder = folder / "encoder"
  tokenizer = tokens.train_tokenizer([line.split("\t")[1] for line in titles], vocab_size=300)
  sizes = {"vocab_size": 300, "max_length": 16, "dim": 8, "num_layers": 1, "num_heads": 2}
  rows = tokens.encode(tokenizer, ["a"], max_length=4)
  params = make_bert(**sizes).init(jax.random.key(0), rows)
  hub.save(encoder, hub.Checkpoint("bert", "bert", sizes, params, {}))
  (encoder / "tokenizer.json").write_text(tokenizer.to_str())
  return folder


def data_of(log):
  return DataConfig(dataset=str(log / "log.txt"), items_path=str(log / "titles.tsv"), max_length=16)


@pytest.fixture(scope="module")
def embedded(log, tmp_path_factory):
  folder = tmp_path_factory.mktemp("titles")
  embed.run(embed.Config(str(log / "encoder"), data=data_of(log)), folder)
  return folder


def test_embeddings_are_the_encoders(log, embedded):
  with np.load(embedded / "embeddings.npz", allow_pickle=False) as found:
    ids, rows = found["ids"].tolist(), found["embeddings"]
  assert sorted(ids, key=int) == [str(i) for i in range(30)]
  assert (rows[ids.index("29")] == 0).all()
  checkpoint = hub.load(log / "encoder")
  tokenizer = tokens.load_tokenizer(log / "encoder")
  batch = tokens.encode(tokenizer, ["red thing number 7"], max_length=16)
  batch = {name: jnp.asarray(values) for name, values in batch.items()}
  expected = make_bert(**checkpoint.sizes).apply(checkpoint.params, batch).logits[0]
  np.testing.assert_allclose(rows[ids.index("7")], expected, atol=1e-5)


def test_a_stopped_run_goes_on(log, embedded, tmp_path, monkeypatch):
  """Killed in its third part, it makes the rest alone, and ends with the same numbers."""
  monkeypatch.setattr(embed, "TEXTS_PER_PART", 8)
  config = embed.Config(str(log / "encoder"), progress=False, data=data_of(log))
  embed.run(config, tmp_path / "whole")
  encode_texts, calls = serve.encode_texts, []

  def stop_at(number):
    def encode(apply, params, rows, **options):
      calls.append(len(rows["tokens"]))
      if len(calls) == number:
        raise KeyboardInterrupt
      return encode_texts(apply, params, rows, **options)

    monkeypatch.setattr(serve, "encode_texts", encode)

  stop_at(3)
  with pytest.raises(KeyboardInterrupt):
    embed.run(config, tmp_path / "parts")
  kept = sorted((tmp_path / "parts" / "parts").iterdir())
  assert [path.name for path in kept] == ["000000000.npy", "000000008.npy"]
  assert not (tmp_path / "parts" / "embeddings.npz").exists()
  # One that was cut off while it was written does not count, nor does a part of other texts.
  (tmp_path / "parts" / "parts" / "000000016.npy.partial").write_bytes(b"\x93NUM")
  calls.clear()
  stop_at(0)
  result = embed.run(config, tmp_path / "parts")
  assert calls == [8, 5], "29 items have a title"
  assert result == json.loads((tmp_path / "whole" / "result.json").read_text())
  assert not (tmp_path / "parts" / "parts").exists()
  whole, parts, at_once = (
    np.load(folder / "embeddings.npz", allow_pickle=False)
    for folder in (tmp_path / "whole", tmp_path / "parts", embedded)
  )
  np.testing.assert_array_equal(whole["ids"], parts["ids"])
  np.testing.assert_array_equal(whole["embeddings"], parts["embeddings"])
  np.testing.assert_allclose(whole["embeddings"], at_once["embeddings"], atol=1e-6)


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda path: path.write_bytes(b"no"), r"000000000.npy: damaged .*; delete it"),
    (lambda path: np.save(path, np.ones([3, 8])), r"for 29 texts: the items have changed"),
  ],
  ids=["damaged", "other"],
)
def test_parts_that_do_not_fit_are_named(log, tmp_path, spoil, message):
  (tmp_path / "parts").mkdir()
  spoil(tmp_path / "parts" / "000000000.npy")
  config = embed.Config(str(log / "encoder"), progress=False, data=data_of(log))
  with pytest.raises(DataError, match=message):
    embed.run(config, tmp_path)


def test_a_teacher_over_texts_teaches_a_student_of_ids(log, embedded, tmp_path):
  model = dataclasses.replace(tiny.TEACHER, item_embeddings=(str(embedded),))
  config = train.Config(data_of(log), model, tiny.FIT)
  taught = train.run(config, tmp_path / "teacher")
  assert taught["sizes"]["feature_dims"] == [8]
  teacher = stored.load_model(tmp_path / "teacher", flag="--teacher")
  dataset = problems.load_data(data_of(log))
  with np.load(embedded / "embeddings.npz", allow_pickle=False) as found:
    row_of = dict(zip(found["ids"].tolist(), found["embeddings"], strict=True))
  kept = teacher.params["item_features_0"]["embedding"]
  for item, row in zip(dataset.item_ids, kept, strict=True):
    np.testing.assert_array_equal(row, row_of[str(item)])  # As they were: data is not trained.
  options = DistillConfig(distill_losses=("importance_ranking:0.5",), cache_queries=True)
  folded = dataclasses.replace(
    tiny.STUDENT, item_embeddings=model.item_embeddings, fold_item_embeddings=True
  )
  made = distill.run(
    distill.Config((str(tmp_path / "teacher"),), data_of(log), folded, options, tiny.FIT),
    tmp_path / "student",
  )
  assert "feature_dims" not in made["sizes"]
  student = stored.load_model(tmp_path / "student", flag="--").params
  assert set(student) == {"item_embedding", "position_embedding", "block_0", "norm"}
  pruned = prune.run(
    prune.Config(
      str(tmp_path / "teacher"),
      prune=PruneConfig(sparsity=0.5, keep_mlp=0.5, mask_every=1),
      fit=tiny.FIT,
    ),
    tmp_path / "pruned",
  )
  assert pruned["sizes"]["adapter_dim"] == 8
  small = stored.load_model(tmp_path / "pruned", flag="--").params
  np.testing.assert_array_equal(small["item_features_0"]["embedding"], kept)
  quantize.run(quantize.Config(str(tmp_path / "pruned")), tmp_path / "int8")


def test_two_tables_by_flags(log, embedded, tmp_path):
  """Of texts and, say, of images: each has an adapter of its own."""
  seen = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
  np.savez(tmp_path / "images.npz", ids=np.arange(30).astype(str), embeddings=seen)
  data = data_of(log)
  done = tiny.binary(
    "train", f"--workdir={tmp_path / 'run'}", f"--dataset={data.dataset}", "--max_length=16",
    f"--items_path={data.items_path}", f"--item_embeddings={embedded},{tmp_path / 'images.npz'}",
    "--dim=8", "--layers=1", "--heads=1", "--epochs=1", "--batch_size=16", "--noprogress",
  )  # fmt: skip
  assert "test ndcg@10" in done.stdout
  saved = stored.load_model(tmp_path / "run", flag="--")
  assert saved.sizes["feature_dims"] == [8, 5]
  dataset = problems.load_data(data)
  order = [int(item) for item in dataset.item_ids]
  np.testing.assert_array_equal(saved.params["item_features_1"]["embedding"], seen[order])
  assert saved.params["item_features_0"]["embedding"].shape == (30, 8)
  failed = tiny.binary(
    "train", f"--workdir={tmp_path / 'no'}", f"--dataset={data.dataset}", "--noprogress",
    f"--item_embeddings={embedded},{tmp_path / 'sounds.npz'}", check=False,
  )  # fmt: skip
  assert failed.returncode == 1
  assert "sounds.npz: no ids and embeddings in it" in failed.stderr.splitlines()[-1]


def test_what_is_wrong_is_named(log, embedded, tmp_path):
  model = dataclasses.replace(tiny.TEACHER, item_embeddings=(str(embedded),))
  with pytest.raises(ValueError, match="--item_embeddings does not fit --model=mf"):
    train.run(
      train.Config(data_of(log), dataclasses.replace(model, model="mf"), tiny.FIT), tmp_path / "a"
    )
  fold = dataclasses.replace(tiny.STUDENT, fold_item_embeddings=True)
  with pytest.raises(ValueError, match="--fold_item_embeddings needs --item_embeddings"):
    train.run(train.Config(data_of(log), fold, tiny.FIT), tmp_path / "fold")
  np.savez(tmp_path / "x.npz", ids=np.array(["z"]), embeddings=np.ones([1, 3], np.float32))
  other = ModelConfig(item_embeddings=(str(tmp_path / "x.npz"),), dim=8)
  with pytest.raises(DataError, match=r"knows none of the log's 40 items"):
    train.run(train.Config(tiny.DATA, other, tiny.FIT), tmp_path / "b")
  (tmp_path / "y.npz").write_bytes(b"PK\x03\x04 no more")
  broken = ModelConfig(item_embeddings=(str(tmp_path / "y.npz"),))
  with pytest.raises(DataError, match=r"y.npz: no ids and embeddings in it"):
    train.run(train.Config(tiny.DATA, broken, tiny.FIT), tmp_path / "c")
  with pytest.raises(DataError, match=r"no attribute colour; there are .*title.*--columns"):
    embed.run(
      embed.Config(str(log / "encoder"), columns=("colour",), data=data_of(log)), tmp_path / "d"
    )
  with pytest.raises(ValueError, match="--checkpoint: give the folder"):
    embed.run(embed.Config(data=data_of(log)), tmp_path / "e")
  shutil.copytree(GOLDEN / "bert_pool", tmp_path / "bare")
  with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
    embed.run(embed.Config(str(tmp_path / "bare"), data=data_of(log)), tmp_path / "f")


def test_cold_users_by_hand():
  counts = np.array([9, 4, 5, 0])
  found = ranks.Ranks(
    users=np.array([0, 2, 3], np.int32),
    offsets=np.array([0, 1, 3, 4]),
    items=np.array([1, 3, 0, 3], np.int32),
    greater=np.array([0, 0, 0, 1], np.int32),
    tied=np.ones(4, np.int32),
    num_negatives=0,
  )
  per_case = {"ndcg@10": np.array([1.0, 0.5, 0.25]), "recall@20": np.array([1.0, 1.0, 0.0])}
  scores = cold_start(counts, found, per_case)
  assert scores == {"cold_ndcg@10": 0.625, "cold_recall@20": 0.5, "cold_users": 2.0}
  assert cold_start(counts + 9, found, per_case) == {}
