"""The index of a bi-encoder: built once, searched exactly, by flags."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import families, find, problems, quantize, retrieval, stored, train
from experiments import retrieval_rows as collection
from experiments.config import DataConfig, ModelConfig
from kdjax.data.errors import DataError
from kdjax.data.tokens import encode

DATA = DataConfig(
  synthetic_users=24, synthetic_items=40, max_length=12, query_length=6, vocab_size=300,
  mined_negatives=3,
)  # fmt: skip
FIT = dataclasses.replace(tiny.FIT, epochs=1, batch_size=32, steps_per_call=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model") / "model"
  train.run(train.Config(DATA, ModelConfig("bi_encoder", encoder="static", dim=8), FIT), folder)
  return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """The documents and queries that the model was trained on, as files."""
  folder, dataset = tmp_path_factory.mktemp("corpus"), retrieval.load(DATA)
  for name, ids, texts in (
    ("corpus", dataset.document_ids, dataset.documents),
    ("queries", dataset.query_ids, dataset.queries),
  ):
    lines = [json.dumps({"_id": i, "text": text}) for i, text in zip(ids, texts, strict=True)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


def read(file):
  found = {}
  for line in file.read_text().splitlines():
    query, q0, document, rank, score, name = line.split()
    assert (q0, name) == ("Q0", "kdjax")
    found.setdefault(query, []).append((document, int(rank), float(score)))
  return found


def test_what_is_found_is_the_best_of_all(model, corpus, tmp_path):
  made = find.run(find.Config(str(model), queries=str(corpus), k=7), tmp_path)
  assert made["documents"] == 40
  found = read(tmp_path / "found.trec")
  dataset, saved = retrieval.load(DATA), stored.load_model(model, flag="--")
  words, apply = collection.tokenizer(DATA), families.make_model(saved.family, saved.sizes).apply
  encoded = [
    encode(words, texts, max_length=length)["tokens"]
    for texts, length in ((dataset.queries, 6), (dataset.documents, 12))
  ]
  # Every query with every document, as the model scores pairs.
  every = jnp.broadcast_to(jnp.asarray(encoded[1]), (len(dataset.queries), *encoded[1].shape))
  batch = {"query_tokens": jnp.asarray(encoded[0]), "tokens": every}
  scores = np.asarray(apply(saved.params, batch).logits)
  assert sorted(found) == sorted(dataset.query_ids)
  for row, query in enumerate(dataset.query_ids):
    documents, ranks, said = zip(*found[query], strict=True)
    assert ranks == tuple(range(1, 8))
    np.testing.assert_allclose(said, np.sort(scores[row])[::-1][:7], atol=1e-4)
    own = [scores[row, dataset.document_ids.index(name)] for name in documents]
    np.testing.assert_allclose(said, own, atol=1e-4)
  # And it is what judging ranks.
  judged = problems.make_task(DATA, "bi_encoder").judge(apply, saved.params, "test").top_k
  for query, best in zip(retrieval.judged_queries(DATA, "test"), judged, strict=True):
    names = [dataset.document_ids[i] for i in best[:7]]
    assert [name for name, *_ in found[dataset.query_ids[query]]] == names


def test_documents_are_encoded_once(model, corpus, tmp_path, monkeypatch, capsys):
  given = find.Config(str(model), documents=str(corpus / "corpus.jsonl"), k=3)
  assert "file" not in find.run(given, tmp_path)
  encode = find.serve.encode_texts
  read_texts = []

  def count(apply, params, rows):
    read_texts.append(len(rows["tokens"]))
    return encode(apply, params, rows)

  monkeypatch.setattr(find.serve, "encode_texts", count)
  text = retrieval.load(DATA).documents[5]
  capsys.readouterr()
  one = dataclasses.replace(given, query=text, format="jsonl")
  made = find.run(one, tmp_path)
  assert (made["queries"], made["k"], made["file"]) == (1, 3, "found.jsonl")
  assert read_texts == [1]  # The query alone.
  (found,) = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
  assert found["text"] == text
  assert [x["score"] for x in found["found"]] == sorted(x["score"] for x in found["found"])[::-1]
  first = capsys.readouterr().out.splitlines()[1].split()
  assert (first[0], first[2]) == ("1", found["found"][0]["_id"])
  find.run(dataclasses.replace(given, queries=str(corpus / "queries.jsonl"), k=99), tmp_path)
  assert read_texts == [1, 24]
  assert all(len(best) == 40 for best in read(tmp_path / "found.trec").values())
  with pytest.raises(ValueError, match=r"index of other flags or files \(--int8\)"):
    find.run(dataclasses.replace(given, int8=True), tmp_path)
  (corpus / "fewer.jsonl").write_text('{"_id": "a b", "text": "word1"}\n')
  fewer = dataclasses.replace(one, documents=str(corpus / "fewer.jsonl"))
  with pytest.raises(ValueError, match=r"\(--documents\); use those, another --workdir"):
    find.run(fewer, tmp_path)
  with pytest.raises(DataError, match=r"'a b' does not fit TREC's columns; give --format=jsonl"):
    find.run(dataclasses.replace(fewer, format="trec"), tmp_path / "fewer")
  assert find.run(fewer, tmp_path / "fewer")["k"] == 1


def test_an_index_of_integers_is_smaller_and_near(model, corpus, tmp_path):
  quantize.run(quantize.Config(str(model)), tmp_path / "small")  # Its run has no tokenizer.
  floats = find.run(find.Config(str(model), queries=str(corpus)), tmp_path / "floats")
  ints = find.run(
    find.Config(str(tmp_path / "small"), queries=str(corpus), int8=True), tmp_path / "ints"
  )
  assert ints["bytes"] < floats["bytes"]
  found = [read(tmp_path / name / "found.trec") for name in ("floats", "ints")]
  same = [
    len({d for d, *_ in found[0][query]} & {d for d, *_ in found[1][query]}) for query in found[0]
  ]
  assert np.mean(same) > 8
  np.testing.assert_allclose(
    [found[0][query][0][2] for query in found[0]],
    [found[1][query][0][2] for query in found[0]],
    atol=0.5,  # Of scores up to 20.
  )


def test_what_does_not_fit_is_named(model, tmp_path):
  with pytest.raises(ValueError, match="--query and --queries: give one"):
    find.run(find.Config(str(model), query="a", queries="b"), tmp_path)
  train.run(tiny.train_config("mf"), tmp_path / "mf")
  with pytest.raises(ValueError, match="is a mf, which embeds no documents"):
    find.run(find.Config(str(tmp_path / "mf"), query="a"), tmp_path)
  with pytest.raises(DataError, match=r"no documents in it: give a folder with corpus.jsonl"):
    find.run(find.Config(str(model), documents=str(tmp_path)), tmp_path / "x")
  (tmp_path / "empty.jsonl").touch()
  with pytest.raises(DataError, match=r"--documents=.*empty.jsonl: there is not one text in it"):
    find.run(find.Config(str(model), documents=str(tmp_path / "empty.jsonl")), tmp_path / "x")
  with pytest.raises(DataError, match="no such file"):
    find.run(find.Config(str(model), documents=str(tmp_path / "none")), tmp_path / "x")
