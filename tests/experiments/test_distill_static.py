"""Static tables from a teacher's words on the vocabulary: what is written, judged, trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import distill_static, evaluate, quantize, retrieval, stored, train
from experiments.config import DataConfig, ModelConfig
from kdjax.data import tokens
from kdjax.models import distill_table, hub, make_bert, make_static

DATA = DataConfig(
  synthetic_users=24, synthetic_items=40, max_length=12, query_length=6, vocab_size=300,
  mined_negatives=3, pseudo_queries=True,
)  # fmt: skip
SIZES = {"vocab_size": 300, "max_length": 12, "dim": 8, "num_layers": 1, "num_heads": 2}
FIT = dataclasses.replace(tiny.FIT, epochs=1, batch_size=32, steps_per_call=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  """A checkpoint folder, as one of the hub."""
  folder = tmp_path_factory.mktemp("encoder")
  words = tokens.train_tokenizer(retrieval.load(DATA).documents, vocab_size=300)
  params = make_bert(**SIZES).init(jax.random.key(0), tokens.encode(words, ["a"], max_length=4))
  params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)
  hub.save(folder, hub.Checkpoint("bert", "bert", SIZES, params, {}))
  (folder / "tokenizer.json").write_text(words.to_str())
  return folder


def config_of(teacher, **options):
  given = {"dim": 6, "progress": False, "data": DATA} | options
  return distill_static.Config(str(teacher), **given)


def table_of(folder):
  return np.asarray(stored.load_model(folder, flag="--").params["token_embedding"]["embedding"])


def test_the_table_is_what_the_teacher_says_of_each_token(encoder, tmp_path):
  made = distill_static.run(config_of(encoder, smoothing=0.01), tmp_path / "made")
  words, found = tokens.load_tokenizer(encoder), hub.load(encoder)
  apply, said = jax.jit(make_bert(**found.sizes).apply), []
  ids = [i for i in range(words.get_vocab_size()) if words.id_to_token(i) not in tokens.SPECIAL]
  first, last = (words.token_to_id(name) for name in ("[CLS]", "[SEP]"))
  for token in ids:
    row = {"tokens": jnp.array([[first, token, last]]), "positions": jnp.arange(3)[None]}
    said.append(apply(found.params, row | {"segments": jnp.ones([1, 3], jnp.int32)}).logits[0])
  counts = np.zeros(words.get_vocab_size())
  words.enable_truncation(DATA.max_length)
  for document in retrieval.load(DATA).documents:
    np.add.at(counts, words.encode(document).ids, 1)
  expected = distill_table(np.stack(said), counts[ids], dim=6, smoothing=0.01)
  table = table_of(tmp_path / "made")
  # Principal components are known up to their signs.
  dots = lambda x: x @ x.T  # noqa: E731
  np.testing.assert_allclose(dots(table[ids]), dots(expected), atol=1e-4 * dots(expected).max())
  assert (table[[first, last]] == 0).all()
  assert made["training"]["tokens"] == len(ids)
  assert made["sizes"]["encoder"] == "static"
  assert 0 < made["quality"]["ndcg@10"]["value"] <= 1


def test_its_run_is_judged_trained_on_and_quantized_as_others(encoder, tmp_path, capsys):
  data = dataclasses.replace(DATA, tokenizer=str(encoder))
  teacher = ModelConfig("bi_encoder", checkpoint=str(encoder))
  train.run(train.Config(data, teacher, FIT), tmp_path / "teacher")
  made = distill_static.run(config_of(tmp_path / "teacher", data=data), tmp_path / "static")
  assert distill_static.run(config_of(tmp_path / "teacher", data=data), tmp_path / "static") == made
  model = ModelConfig("bi_encoder", encoder="static", dim=6, start=str(tmp_path / "static"))
  fit = dataclasses.replace(FIT, learning_rate=0.0)
  train.run(train.Config(data, model, fit), tmp_path / "more")
  assert "1 of 1 arrays are its own" in capsys.readouterr().out
  np.testing.assert_array_equal(table_of(tmp_path / "more"), table_of(tmp_path / "static"))
  quantize.run(quantize.Config(str(tmp_path / "static")), tmp_path / "int8")
  runs = tuple(str(tmp_path / name) for name in ("teacher", "static", "int8"))
  rows = evaluate.run(evaluate.Config(runs, requests=2, batches=1), tmp_path / "eval")["rows"]
  assert rows[1]["quality"] == made["quality"]
  other = dataclasses.replace(data, fold=1)
  with pytest.raises(ValueError, match="trained on another split: --fold was 0, is 1"):
    distill_static.run(config_of(tmp_path / "teacher", data=other), tmp_path / "fold")


def test_a_classifier_is_that_of_class_means_and_variances(encoder, tmp_path):
  data = dataclasses.replace(tiny.TEXTS, synthetic_users=300, tokenizer=str(encoder))
  config = config_of(encoder, model="static", data=data)
  distill_static.run(config, tmp_path / "made")
  saved = stored.load_model(tmp_path / "made", flag="--")
  task = distill_static.problems.make_task(saved.data, "static")
  rows = {name: jnp.asarray(task.arrays[name]) for name in ("tokens", "segments")}
  outputs = make_static(**saved.sizes).apply(saved.params, rows)
  x, labels = np.asarray(outputs.features["query"], np.float64), task.arrays["labels"]
  means = np.stack([x[labels == c].mean(axis=0) for c in (0, 1)])
  deviation = np.sqrt(np.mean((x - means[labels]) ** 2, axis=0))
  log_odds = np.log((np.sum(labels == 1) + 1) / (np.sum(labels == 0) + 1)) + 0.5 * np.sum(
    ((x - means[0]) / deviation) ** 2 - ((x - means[1]) / deviation) ** 2, axis=1
  )
  found = np.asarray(outputs.logits[:, 1] - outputs.logits[:, 0])
  np.testing.assert_allclose(found, log_odds, atol=2e-3 * np.abs(log_odds).max())


def test_what_does_not_fit_is_named(encoder, tmp_path):
  run = distill_static.run
  with pytest.raises(ValueError, match="--teacher: give a checkpoint folder"):
    run(config_of(""), tmp_path / "a")
  with pytest.raises(ValueError, match=r"--dim=9: the teacher's embeddings are 8 wide"):
    run(config_of(encoder, dim=9), tmp_path / "b")
  train.run(tiny.train_config("mf"), tmp_path / "mf")
  with pytest.raises(ValueError, match="is a mf without an embedding of a text"):
    run(config_of(tmp_path / "mf"), tmp_path / "c")
  words = tokens.train_tokenizer(retrieval.load(DATA).documents, vocab_size=310)
  (tmp_path / "tokenizer.json").write_text(words.to_str())
  other = dataclasses.replace(DATA, tokenizer=str(tmp_path / "tokenizer.json"))
  with pytest.raises(ValueError, match="knows 300 tokens, but --tokenizer gives 302"):
    run(config_of(encoder, data=other), tmp_path / "d")
