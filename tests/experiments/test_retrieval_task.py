"""Search: a cross-encoder teaches a static bi-encoder, which is pruned and quantized."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import (
  bm25,
  candidate_terms,
  distill,
  evaluate,
  families,
  problems,
  prune,
  quantize,
  report,
  retrieval,
  starts,
  stored,
  teachers,
  train,
)
from experiments import retrieval_rows as collection
from experiments.config import DataConfig, DistillConfig, ModelConfig, PruneConfig
from kdjax import losses
from kdjax.data import tokens
from kdjax.data.bm25 import make_bm25
from kdjax.data.errors import DataError
from kdjax.models import hub, make_bert
from kdjax.types import Outputs

DATA = DataConfig(
  synthetic_users=24, synthetic_items=40, max_length=12, query_length=6, vocab_size=300,
  mined_negatives=3, rerank=12, pseudo_queries=True,
)  # fmt: skip
CROSS = ModelConfig("cross_encoder", dim=8, layers=1, heads=2)
STATIC = ModelConfig("bi_encoder", encoder="static", dim=8)
FIT = dataclasses.replace(tiny.FIT, epochs=1, batch_size=32, steps_per_call=8)
METRICS = {"ndcg@10", "mrr@10", "recall@100"}


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cross") / "cross"
  made = train.run(train.Config(DATA, CROSS, FIT), folder)
  # It ranks 12 of the 40 documents: the others are not found.
  assert set(made["quality"]) == METRICS | {"reranked"}
  assert made["quality"]["reranked"]["value"] == 12
  assert made["quality"]["recall@100"]["value"] < 1
  return folder


def student(teacher, folder, *entries, data=DATA, model=STATIC, **options):
  options = DistillConfig(distill_losses=entries, **options)
  return distill.run(distill.Config((str(teacher),), data, model, options, FIT), folder)


def test_from_cross_encoder_to_a_small_index(cross, tmp_path, capsys):
  made = student(cross, tmp_path / "student", "margin_mse:0.1", "kl:0.5", "listnet:0.1")
  assert made["task"] == "search"
  assert made["quality"]["recall@100"]["value"] == 1  # Of all 40 documents.
  logged = json.loads((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()[0])
  assert {"train/margin_mse", "train/kl", "train/cross_entropy", "valid/ndcg@10"} <= set(logged)
  options = PruneConfig(sparsity=0.5, keep_dim=0.5, mask_every=1)
  config = prune.Config(str(tmp_path / "student"), str(cross), prune=options, fit=FIT)
  assert prune.run(config, tmp_path / "pruned")["sizes"]["dim"] == 4
  int8 = quantize.run(quantize.Config(str(tmp_path / "pruned")), tmp_path / "int8")
  assert int8["size"]["bytes"] < made["size"]["bytes"] / 2

  bm25.run(bm25.Config(DATA), tmp_path / "bm25")
  config = evaluate.Config((str(cross), str(tmp_path / "int8")), requests=2, batches=1)
  rows = evaluate.run(config, tmp_path / "eval")["rows"]
  assert rows[1]["cost"]["throughput"] > 0
  assert 0 <= rows[1]["agreement"]["overlap@10"] <= 1
  assert np.isfinite(list(rows[1]["agreement"].values())).all()
  table = report.run(
    report.Config((str(tmp_path / "eval"), str(tmp_path / "bm25"))), tmp_path / "r"
  )
  assert [row["name"] for row in table["table"]] == ["cross", "int8", "bm25"]
  capsys.readouterr()


def test_what_a_teacher_says_is_what_it_would_say_live(cross):
  task = retrieval.make_task(DATA, "cross_encoder")
  batch = {name: jnp.asarray(values[:9]) for name, values in task.arrays.items()}
  saved = stored.load_model(cross, flag="--")
  apply = jax.jit(families.make_model(saved.family, saved.sizes).apply)
  said = task.run_teacher("cross_encoder", apply, saved.params, embeddings=True)
  assert set(said) == {"scores"}
  np.testing.assert_allclose(said["scores"][:9], apply(saved.params, batch).logits, atol=1e-5)

  sizes = retrieval.model_sizes(STATIC, retrieval.make_task(DATA, "bi_encoder").sizes)
  model = families.make_model("bi_encoder", sizes | {"scale": 3.0})
  params = model.init(jax.random.key(0), batch)
  said = task.run_teacher("bi_encoder", model.apply, params, embeddings=True)
  live = jax.jit(model.apply)(params, batch)
  np.testing.assert_allclose(said["scores"][:9], live.logits, atol=1e-5)
  for name in ("query", "documents"):
    np.testing.assert_allclose(said[name][:9], live.features[name], atol=1e-5)


@pytest.mark.parametrize(
  "model",
  [CROSS, ModelConfig("bi_encoder", encoder="bert", dim=8, layers=1, heads=2)],
  ids=lambda model: model.model,
)
def test_documents_are_grouped_by_length(tmp_path, model):
  data = dataclasses.replace(DATA, max_length=24)
  task = problems.make_task(data, model.model)
  short = np.argsort(task.lengths, kind="stable")[:9]
  length = task.lengths[short].max()
  assert length < task.arrays["tokens"].shape[-1]
  made = train.run(
    train.Config(data, model, dataclasses.replace(FIT, group_by_length=True)), tmp_path / "run"
  )
  assert made["training"]["steps"] > 1
  saved = stored.load_model(tmp_path / "run", flag="--")
  apply = families.make_model(saved.family, saved.sizes).apply
  batch = {name: jnp.asarray(values[short]) for name, values in task.arrays.items()}
  cut = batch | {name: batch[name][..., :length] for name in task.cut}

  def loss(params, batch):
    total, count = retrieval.label_loss(apply(params, batch), None, batch)
    return total / count

  run = jax.jit(jax.value_and_grad(loss))
  for a, b in zip(
    *map(jax.tree.leaves, (run(saved.params, cut), run(saved.params, batch))), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


def refuse(*args, **options):
  raise AssertionError("the teacher ran again")


def params_of(folder):
  return jax.tree.leaves(stored.load_model(folder, flag="--").params)


def test_what_a_teacher_says_is_written_once(cross, tmp_path, monkeypatch):
  teacher = tmp_path / "teacher"
  shutil.copytree(cross, teacher)
  shutil.rmtree(teacher / "said", ignore_errors=True)
  made = student(teacher, tmp_path / "without", "kl:1", cache_scores=False)
  assert not (teacher / "said").exists()
  student(teacher, tmp_path / "first", "kl:1")
  (file,) = (teacher / "said").iterdir()
  with monkeypatch.context() as patched:
    patched.setattr(retrieval, "score_pairs", refuse)
    again = student(teacher, tmp_path / "second", "kl:1")
    student(teacher, tmp_path / "wider", "kl:1", model=dataclasses.replace(STATIC, dim=16))
    assert again["quality"] == made["quality"]
    for name in ("first", "second"):
      for a, b in zip(params_of(tmp_path / name), params_of(tmp_path / "without"), strict=True):
        np.testing.assert_array_equal(a, b)
    # Other rows are not those, nor is another model.
    other = dataclasses.replace(DATA, mined_negatives=2)
    with pytest.raises(AssertionError, match="ran again"):
      student(teacher, tmp_path / "rows", "kl:1", data=other)
    moved = tmp_path / "moved"
    saved = stored.load_model(teacher, flag="--")
    shutil.copytree(teacher, moved)
    more = jax.tree.map(lambda x: x + 1, saved.params)
    stored.save_model(moved, saved.family, saved.sizes, more, saved.data)
    with pytest.raises(AssertionError, match="ran again"):
      student(moved, tmp_path / "model", "kl:1")
  assert [file] == list((teacher / "said").iterdir())  # A run that failed left nothing.
  data = bytearray(file.read_bytes())
  data[-3] ^= 1
  file.write_bytes(data)
  with pytest.raises(DataError, match=r"checksum does not match.*delete the file, and the teacher"):
    student(teacher, tmp_path / "damaged", "kl:1")


def test_embeddings_of_a_teacher_are_written_once_too(tmp_path, monkeypatch):
  wide = dataclasses.replace(STATIC, dim=12)
  train.run(train.Config(DATA, wide, FIT), tmp_path / "teacher")
  options = {"cache_queries": True}
  student(tmp_path / "teacher", tmp_path / "a", "in_batch_kl:1", cache_scores=False, **options)
  student(tmp_path / "teacher", tmp_path / "b", "in_batch_kl:1", **options)
  assert len(list((tmp_path / "teacher" / "said").iterdir())) == 1
  monkeypatch.setattr(retrieval, "queries_of", refuse)
  task = retrieval.make_task(DATA, "bi_encoder")
  saved = stored.load_model(tmp_path / "teacher", flag="--")
  _, _, rows = teachers.join_teachers(task, FIT, DistillConfig(), [saved])  # No --cache_queries.
  assert rows["teacher_1_scores"].shape == rows["candidates"].shape
  for a, b in zip(params_of(tmp_path / "a"), params_of(tmp_path / "b"), strict=True):
    np.testing.assert_array_equal(a, b)


def test_rows_hold_what_answers_first_and_negatives_that_do_not():
  dataset, rows = retrieval.load(DATA), collection.training_rows(DATA)
  known = {}
  for part in dataset.parts.values():
    relevant = part.relevant()
    for query, document in zip(relevant.queries, relevant.documents, strict=True):
      known.setdefault(int(query), set()).add(int(document))
  train_queries = set(dataset.parts["train"].queries.tolist())
  titled = 0
  for query, candidates, relevant in zip(*rows, strict=True):
    assert len(set(candidates.tolist())) == 4
    if query < len(dataset.queries):
      assert query in train_queries
      assert candidates[0] in known[query]
      assert not known[query] & set(candidates[1:].tolist())
      assert set(relevant[relevant >= 0].tolist()) == known[query]
    else:
      assert collection.asked(DATA)[query] == dataset.titles[candidates[0]]
      titled += 1
  assert titled == len(dataset.documents)


def test_mined_negatives_are_nearer_than_drawn_ones():
  data = dataclasses.replace(DATA, synthetic_items=300, pseudo_queries=False)
  score = make_bm25(retrieval.load(data).documents)

  def mean(data):
    rows = collection.training_rows(data)
    asked = collection.asked(data)
    found = score([asked[query] for query in rows.queries])
    return np.take_along_axis(found, rows.candidates[:, 1:], axis=1).mean()

  assert mean(data) > 2 * mean(dataclasses.replace(data, mining="random"))


def test_label_loss_counts_the_documents_of_other_queries_unless_they_answer():
  rng = np.random.default_rng(0)
  query, documents = rng.normal(size=(2, 3)), rng.normal(size=(2, 2, 3))
  scores = np.einsum("bd,ncd->bnc", query, documents)
  features = {"query": jnp.asarray(query), "documents": jnp.asarray(documents)}
  own = np.einsum("bd,bcd->bc", query, documents)
  # Document 5, the second query's, answers the first query, too.
  batch = {
    "candidates": jnp.array([[4, 7], [5, 8]]), "relevant": jnp.array([[4, 5], [5, -1]])
  }  # fmt: skip
  loss = jax.jit(lambda outputs: retrieval.label_loss(outputs, None, batch))
  found = loss(Outputs(jnp.asarray(own), features))
  rows = [[own[0, 0], own[0, 1], scores[0, 1, 1]], [own[1, 0], own[1, 1], *scores[1, 0]]]
  expected = [np.log(np.exp(row).sum()) - row[0] for row in rows]
  np.testing.assert_allclose(found.total / found.count, np.mean(expected), rtol=1e-5)
  alone = loss(Outputs(jnp.asarray(own), {}))
  expected = [np.log(np.exp(row).sum()) - row[0] for row in own]
  np.testing.assert_allclose(alone.total / alone.count, np.mean(expected), rtol=1e-5)


def test_margins_are_those_of_the_relevant_document(cross):
  rng = np.random.default_rng(0)
  own, other = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in "ab")
  task = retrieval.make_task(DATA, "bi_encoder")
  options = DistillConfig(distill_losses=("margin_mse:1",))
  (term,) = task.flag_terms(options, FIT, num_teachers=1, num_steps=1)
  batch = {"candidates": jnp.zeros([5, 4], jnp.int32), "noise": jnp.zeros(5, jnp.uint32)}
  found = jax.jit(term.loss)(Outputs(own, {}), Outputs(other, {}), batch)
  expected = losses.margin_mse_loss(own[:, 0], own[:, 1:], other[:, 0], other[:, 1:])
  np.testing.assert_allclose(found.total / found.count, expected, rtol=1e-5)


def test_the_kl_of_a_batch_is_over_the_documents_of_all_its_queries():
  """Against dense NumPy: documents that stand in several rows count wherever they stand."""
  task = retrieval.make_task(DATA, "bi_encoder")
  options = DistillConfig(distill_losses=("in_batch_kl:1",), temperature=2.0, label_weight=0.0)
  (term,) = task.flag_terms(options, FIT, num_teachers=1, num_steps=1)
  rng = np.random.default_rng(0)
  # Document 5 is a negative of the first query, answers the second, and stands in two rows.
  ids = np.array([[3, 5, 8], [5, 1, 2], [4, 3, 9]])

  def outputs(width):
    query, table = rng.normal(size=(3, width)), rng.normal(size=(10, width))
    scores = query @ table[ids.reshape(-1)].T  # [3, 9], of all documents of the batch.
    features = {"query": jnp.asarray(query), "documents": jnp.asarray(table[ids])}
    own = np.stack([scores[i, 3 * i : 3 * i + 3] for i in range(3)])
    return scores, Outputs(jnp.asarray(own), features)

  (student, own), (teacher, other) = outputs(4), outputs(6)
  batch = {"candidates": jnp.asarray(ids), "relevant": jnp.array([[3, 5], [5, -1], [4, -1]])}
  log_p, log_q = (
    x / 2 - np.log(np.exp(x / 2).sum(axis=1, keepdims=True)) for x in (teacher, student)
  )
  expected = 4 * np.sum(np.exp(log_p) * (log_p - log_q), axis=1)  # T^2 KL of each query.
  found = jax.jit(term.loss)(own, other, batch)
  np.testing.assert_allclose(found.total, expected.sum(), rtol=1e-5)
  assert float(found.count) == 3
  # A document that stands in n rows is one of n times the mass.
  places = ids.reshape(-1)
  merged = [
    np.stack([np.logaddexp.reduce(x[:, places == i], axis=1) for i in np.unique(places)], axis=1)
    for x in (log_p, log_q)
  ]
  one = 4 * np.sum(np.exp(merged[0]) * (merged[0] - merged[1]), axis=1)
  np.testing.assert_allclose(found.total, one.sum(), rtol=1e-5)
  zero = jax.jit(term.loss)(other, other, batch)
  np.testing.assert_allclose(zero.total, 0, atol=1e-5)
  # A batch of one row has its own documents alone.
  alone = [jax.tree.map(lambda x: x[:1], x) for x in (own, other, batch)]
  log_p, log_q = (x[0, :3] / 2 - np.log(np.exp(x[0, :3] / 2).sum()) for x in (teacher, student))
  expected = 4 * np.sum(np.exp(log_p) * (log_p - log_q))
  np.testing.assert_allclose(jax.jit(term.loss)(*alone).total, expected, rtol=1e-5)
  with pytest.raises(ValueError, match="no feature 'query'"):
    term.loss(own, Outputs(other.logits, {}), batch)


def pair_sizes(model, data):
  return retrieval.model_sizes(model, retrieval.make_task(data, "cross_encoder").sizes)


def test_from_a_checkpoint_and_a_bi_encoder_with_its_embeddings(tmp_path):
  words = tokens.train_tokenizer(retrieval.load(DATA).documents, vocab_size=300)
  sizes = {"vocab_size": 300, "max_length": 48, "dim": 8, "num_layers": 1, "num_heads": 2}
  params = make_bert(**sizes).init(jax.random.key(0), tokens.encode(words, ["a"], max_length=4))
  folder = tmp_path / "encoder"
  hub.save(folder, hub.Checkpoint("bert", "bert", sizes | {"pooling": "first"}, params, {}))
  (folder / "tokenizer.json").write_text(words.to_str())
  data = dataclasses.replace(DATA, tokenizer=str(folder))
  model = ModelConfig("bi_encoder", checkpoint=str(folder))
  fit = dataclasses.replace(FIT, learning_rate=0.0)
  made = train.run(train.Config(data, model, fit), tmp_path / "teacher")
  assert (made["sizes"]["encoder"], made["sizes"]["pooling"]) == ("bert", "first")
  kept = stored.load_model(tmp_path / "teacher", flag="--").params
  assert jax.tree.all(jax.tree.map(np.array_equal, kept, params))
  names = (*candidate_terms.LISTS, "in_batch_kl", "hint@documents")
  entries = tuple(f"{name}:0.01" for name in names)
  student(tmp_path / "teacher", tmp_path / "student", *entries, data=data, cache_queries=True)
  logged = json.loads((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()[0])
  assert np.isfinite([logged[f"train/{name}"] for name in names]).all()
  with pytest.raises(ValueError, match=r"no feature '\w+'; it has none .*--cache_queries"):
    student(tmp_path / "teacher", tmp_path / "without", *entries, data=data)
  pair = dataclasses.replace(model, model="cross_encoder")
  # The head of a checkpoint that is a cross-encoder already is kept.
  own = sizes | {"head": "labels", "num_labels": 1}
  params = make_bert(**own).init(jax.random.key(1), tokens.encode(words, ["a"], max_length=4))
  hub.save(tmp_path / "scorer", hub.Checkpoint("bert", "bert", own, params, {}))
  scorer = dataclasses.replace(pair, checkpoint=str(tmp_path / "scorer"))
  assert pair_sizes(scorer, data)["head_activation"] == "tanh"
  started = starts.start_from(scorer, data, pair_sizes(scorer, data), {})
  assert jax.tree.all(jax.tree.map(np.array_equal, started, params))
  long = dataclasses.replace(data, max_length=44)
  assert pair_sizes(pair, data)["num_types"] == 2
  with pytest.raises(ValueError, match="--max_length=49 is more than the 48 positions"):
    pair_sizes(pair, long)


@pytest.mark.parametrize(
  ("data", "model", "fit", "message"),
  [
    ({"mined_negatives": 39}, {}, {}, r"--mined_negatives=39: there are .* ask for fewer"),
    ({}, {}, {"label_loss": "bpr"}, "--label_loss=bpr does not fit --model=bi_encoder"),
    ({}, {"checkpoint": "x"}, {}, "--checkpoint does not fit --model=static"),
  ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, data, model, fit, message):
  change = dataclasses.replace
  config = train.Config(change(DATA, **data), change(STATIC, **model), change(FIT, **fit))
  with pytest.raises(ValueError, match=message):
    train.run(config, tmp_path)


def test_teachers_and_losses_that_do_not_fit_are_refused(cross, tmp_path):
  with pytest.raises(ValueError, match="did you mean 'margin_mse'"):
    student(cross, tmp_path / "a", "margin_mze:1")
  other = dataclasses.replace(DATA, fold=1)
  with pytest.raises(ValueError, match="another split: --fold was 0, is 1"):
    student(cross, tmp_path / "b", data=other)
