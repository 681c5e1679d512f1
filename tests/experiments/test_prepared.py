"""--prepared_dir: data is read once; what is made of it is mapped, the same to the last bit."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import tiny

from experiments import prepared, problems, retrieval_rows, stored, texts, train
from kdjax.data import mapped, sources, text, tokens
from kdjax.data.errors import DataError
from kdjax.data.retrieval import make_search
from kdjax.train import processes

LOADERS = (texts.load, texts.tokenizer, retrieval_rows.load, retrieval_rows.tokenizer)

ROWS = "user,item,timestamp,rating\n" + "".join(
  f"u{user},i{(user * 7 + n * n) % 23},{1000 * n + user},{1 + (user + n) % 5}\n"
  for user in range(40)
  for n in range(4 + user % 9)
)


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "log" / "events.csv"
  path.parent.mkdir()
  path.write_text(ROWS)
  (path.parent / "items.csv").write_text(
    "item,title\n" + "".join(f"i{n},name {n}\n" for n in range(23))
  )
  return dataclasses.replace(
    tiny.DATA, dataset=str(path), prepared_dir=str(tmp_path / "kept"), label_threshold=4.0,
    split="ratio", valid_fraction=0.2, test_fraction=0.2,
  )  # fmt: skip


def forget():
  kept = (retrieval_rows.encoded, retrieval_rows.training_rows)
  for read in (problems.load_data, problems.make_task, *LOADERS, *kept):
    read.cache_clear()


def refuse(*args, **options):
  raise AssertionError("the log was read again")


@pytest.mark.parametrize("family", ["sasrec", "bert4rec", "mf", "mlp"])
def test_tasks_are_the_same_and_the_log_is_read_once(data, family, monkeypatch):
  direct = dataclasses.replace(data, prepared_dir="")
  forget()
  expected = problems.make_task(direct, family)
  problems.make_task(data, family)
  forget()
  monkeypatch.setattr(sources, "load", refuse)
  again = problems.make_task(data, family)
  for name, values in expected.arrays.items():
    np.testing.assert_array_equal(again.arrays[name], values)
    assert again.arrays[name].dtype == values.dtype
    assert isinstance(again.arrays[name], np.memmap)
  assert (again.sizes, again.num_examples) == (expected.sizes, expected.num_examples)
  if expected.ends is not None:
    np.testing.assert_array_equal(again.ends, expected.ends)
  with pytest.raises(AssertionError, match="read again"):
    problems.load_data(dataclasses.replace(direct, min_rating=2.0))


@pytest.fixture
def written(tmp_path):
  """A table of texts and a folder of BEIR, both with a folder for what is made of them."""
  made = text.make_texts(120).parts["train"]
  (tmp_path / "texts").mkdir()
  rows = [f"{said}\t{label}\n" for said, label in zip(*made, strict=True)]
  (tmp_path / "texts" / "train.tsv").write_text("".join(rows))
  beir = tmp_path / "beir"
  (beir / "qrels").mkdir(parents=True)
  found = make_search(60, num_queries=40)
  documents = zip(found.document_ids, found.titles, found.documents, strict=True)
  lines = [json.dumps({"_id": i, "title": t, "text": said}) for i, t, said in documents]
  (beir / "corpus.jsonl").write_text("\n".join(lines) + "\n")
  queries = zip(found.query_ids, found.queries, strict=True)
  lines = [json.dumps({"_id": i, "text": said}) for i, said in queries]
  (beir / "queries.jsonl").write_text("\n".join(lines) + "\n")
  for name, file in {"train": "train", "valid": "dev", "test": "test"}.items():
    judged = zip(*found.parts[name], strict=True)
    lines = [f"{found.query_ids[q]}\t{found.document_ids[d]}\t{g:.0f}\n" for q, d, g in judged]
    (beir / "qrels" / f"{file}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
  return {
    "texts": dataclasses.replace(
      tiny.TEXTS, dataset=str(tmp_path / "texts"), prepared_dir=str(tmp_path / "kept")
    ),
    "beir": dataclasses.replace(
      tiny.TEXTS, dataset=str(beir), prepared_dir=str(tmp_path / "kept_beir"), query_length=6,
      pseudo_queries=True, mined_negatives=3,
    ),
  }  # fmt: skip


@pytest.mark.parametrize(
  ("family", "objective", "collection"),
  [
    ("bert", "auto", "texts"),
    ("bert", "masked", "texts"),
    ("decoder", "auto", "texts"),
    ("bi_encoder", "auto", "beir"),
    ("cross_encoder", "auto", "beir"),
  ],
)
def test_texts_are_read_and_made_tokens_once(written, family, objective, collection, monkeypatch):
  data = dataclasses.replace(written[collection], objective=objective)
  forget()
  expected = problems.make_task(dataclasses.replace(data, prepared_dir=""), family)
  problems.make_task(data, family)
  forget()
  for module, name in (
    (texts, "load_texts"), (texts, "encode"), (texts, "train_tokenizer"),
    (retrieval_rows, "load_search"), (retrieval_rows, "train_tokenizer"),
  ):  # fmt: skip
    monkeypatch.setattr(module, name, refuse)
  again = problems.make_task(data, family)
  assert set(again.arrays) == set(expected.arrays)
  for name, values in expected.arrays.items():
    np.testing.assert_array_equal(again.arrays[name], values)
    assert again.arrays[name].dtype == values.dtype
  for name, values in (expected.valid or {}).items():
    np.testing.assert_array_equal(again.valid[name], values)
  assert (again.sizes, again.num_examples) == (expected.sizes, expected.num_examples)
  mapped_by_rows = {"tokens"} if collection == "texts" else {"candidates", "relevant"}
  assert all(isinstance(again.arrays[name], np.memmap) for name in mapped_by_rows)
  with pytest.raises(AssertionError, match="read again"):
    problems.make_task(dataclasses.replace(data, max_length=data.max_length + 1), family)


def test_texts_and_collections_are_the_same(written):
  forget()
  for name, load in (("texts", texts.load), ("beir", retrieval_rows.load)):
    data = written[name]
    expected, found = load(dataclasses.replace(data, prepared_dir="")), load(data)
    assert found._fields == expected._fields
    assert found.parts.keys() == expected.parts.keys()
    for part, known in expected.parts.items():
      for a, b in zip(found.parts[part], known, strict=True):
        assert list(a) == list(b)
    for field in set(expected._fields) - {"parts"}:
      assert list(getattr(found, field)) == list(getattr(expected, field))


def test_what_a_tokenizer_was_used_for_does_not_change_it():
  words = tokens.train_tokenizer(["a film"], vocab_size=300)
  before = texts.fingerprint(words)
  tokens.encode(words, ["a film"], max_length=3)
  assert texts.fingerprint(words) == before
  assert texts.fingerprint(tokens.train_tokenizer(["plot"], vocab_size=300)) != before


@pytest.mark.parametrize("changed", ["corpus.jsonl", "qrels/train.tsv"])
def test_another_collection_is_refused(written, changed):
  forget()
  retrieval_rows.load(written["beir"])
  forget()
  os.utime(pathlib.Path(written["beir"].dataset) / changed, (1, 1))
  with pytest.raises(DataError, match=r"--prepared_dir=.* of other data \(files changed\)"):
    retrieval_rows.load(written["beir"])


def test_the_log_is_the_same(data):
  forget()
  expected = problems.load_data(dataclasses.replace(data, prepared_dir=""))
  found = problems.load_data(data)
  for a, b in zip(jax.tree.leaves(found.split), jax.tree.leaves(expected.split), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype
  assert found.events.equals(expected.events)
  assert found.items.equals(expected.items)
  assert found.user_ids.to_list() == expected.user_ids.to_list()
  assert found.item_ids.to_list() == expected.item_ids.to_list()
  assert found.summary == expected.summary


def test_a_run_is_the_same(data, tmp_path):
  config = dataclasses.replace(tiny.train_config(), data=data)
  direct = dataclasses.replace(config, data=dataclasses.replace(data, prepared_dir=""))
  runs = {"mapped": config, "direct": direct}
  made = {name: train.run(config, tmp_path / name) for name, config in runs.items()}
  assert made["mapped"]["quality"] == made["direct"]["quality"]
  params = [jax.tree.leaves(stored.load_model(tmp_path / name, flag="--").params) for name in runs]
  for a, b in zip(*params, strict=True):
    np.testing.assert_array_equal(a, b)
  # A finished run may be asked for with or without.
  assert train.run(config, tmp_path / "direct")["quality"] == made["direct"]["quality"]


def test_other_processes_wait_for_the_first_one(data, monkeypatch):
  forget()
  expected = problems.load_data(data)
  folder = pathlib.Path(data.prepared_dir) / "log"
  folder.rename(folder.with_name("elsewhere"))
  forget()
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(sources, "load", refuse)
  slept = []

  def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:
      folder.with_name("elsewhere").rename(folder)

  monkeypatch.setattr(prepared.time, "sleep", sleep)
  assert problems.load_data(data).events.equals(expected.events)
  assert len(slept) == 3


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (lambda data: dataclasses.replace(data, min_rating=2.0), "min_rating"),
    (lambda data: os.utime(data.dataset, (1, 1)) or data, "files"),
  ],
)
def test_another_log_is_refused(data, change, named):
  forget()
  problems.load_data(data)
  data = change(data)
  forget()
  with pytest.raises(DataError, match=rf"--prepared_dir=.* of other data \({named} changed\)"):
    problems.load_data(data)


def test_rows_of_other_lengths_stand_side_by_side(data):
  forget()
  for length in (3, 5):
    task = problems.make_task(dataclasses.replace(data, max_length=length), "sasrec")
    assert task.arrays["items"].shape[1] == length
  packed = list(pathlib.Path(data.prepared_dir).iterdir())
  assert sorted(path.name.split("-")[0] for path in packed) == ["log", "packed", "packed"]
  assert all(map(mapped.is_there, packed))
