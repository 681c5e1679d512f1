import json
import math

import numpy as np
import pytest

from kdjax.data import tokens
from kdjax.data.bm25 import make_bm25
from kdjax.data.errors import DataError
from kdjax.data.retrieval import load_search, make_search
from kdjax.data.search_texts import load_documents, load_queries


def write_beir(folder, **files):
  """A collection of three documents and twelve queries."""
  corpus = [{"_id": f"d{i}", "title": "T" * (i != 1), "text": f"text {i}"} for i in range(3)]
  queries = [{"_id": str(i), "text": f"query {i}", "metadata": {"x": i}} for i in range(12)]
  lines = {
    "corpus.jsonl": "\n".join(map(json.dumps, corpus)),
    "queries.jsonl": "\n".join(map(json.dumps, queries)) + "\n\n",
  } | files
  (folder / "qrels").mkdir()
  for name, content in lines.items():
    (folder / name).write_text(content)
  return folder


def qrels(*queries, gain=1):
  return "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\td{q % 3}\t{gain}\n" for q in queries)


def rows(part):
  return list(zip(*(x.tolist() for x in part), strict=True))


def test_a_folder_of_beir(tmp_path):
  test = "query-id\tcorpus-id\tscore\n11\td1\t0\n11\td2\t2\n10\td0\t1\n11\td2\t1\n"
  given = {"qrels/train.tsv": qrels(*range(10)), "qrels/test.tsv": test}
  data = load_search(write_beir(tmp_path, **given), valid_fraction=0.2)
  assert data.documents == ("T text 0", "text 1", "T text 2")
  assert data.titles == ("T", "", "T")
  assert data.queries[11] == "query 11"
  # Sorted; of what is judged twice the better counts; what is judged irrelevant is kept as such.
  assert rows(data.parts["test"]) == [(10, 0, 1.0), (11, 1, 0.0), (11, 2, 2.0)]
  assert rows(data.parts["test"].relevant()) == [(10, 0, 1.0), (11, 2, 2.0)]
  assert len(data.parts["valid"].queries) == 2
  both = np.concatenate([data.parts[name].queries for name in ("train", "valid")])
  assert sorted(both.tolist()) == list(range(10))
  (tmp_path / "qrels" / "dev.tsv").write_text(qrels(3, 4))
  assert rows(load_search(tmp_path).parts["valid"]) == [(3, 0, 1.0), (4, 1, 1.0)]


def test_judgements_in_one_piece_are_folded(tmp_path):
  data = load_search(write_beir(tmp_path, **{"qrels/test.tsv": qrels(*range(12))}), fold=4)
  folds = {name: sorted(set(part.queries.tolist())) for name, part in data.parts.items()}
  assert folds == {"train": [1, 2, 3, 6, 7, 8, 11], "valid": [0, 5, 10], "test": [4, 9]}
  with pytest.raises(DataError, match="--fold"):
    load_search(tmp_path, fold=5)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("corpus.jsonl", "{", r"corpus.jsonl, line 1: no JSON"),
    ("corpus.jsonl", "[]", r"corpus.jsonl, line 1: an object with _id"),
    ("corpus.jsonl", '{"_id": 1, "text": 3}', r"corpus.jsonl, line 1: text is no text"),
    ("queries.jsonl", '{"_id": 1}\n{"_id": "1"}', r"queries.jsonl: the id '1' stands there twice"),
    ("qrels/test.tsv", "1 d1 1", r"test.tsv, line 1: '1 d1 1': not a query, a document"),
    ("qrels/test.tsv", "1\td1\tmuch", r"test.tsv, line 1: .*with tabs between"),
    ("qrels/test.tsv", "1\td9\t1", r"test.tsv, line 1: no document 'd9'"),
    ("qrels/test.tsv", "99\td1\t1", r"test.tsv, line 1: no query '99'"),
    ("qrels/test.tsv", qrels(1, 2), r"no judged query for train, valid, test: too few"),
    ("qrels/train.tsv", qrels(1, 2), r"qrels: no test.tsv"),
  ],
)
def test_what_is_wrong_in_beir_is_named(tmp_path, name, content, message):
  write_beir(tmp_path, **{name: content})
  if name != "qrels/train.tsv":
    (tmp_path / "qrels" / "test.tsv").touch()
  if message.startswith("no judged"):
    message = "no judged query for "
  with pytest.raises(DataError, match=message):
    load_search(tmp_path)


def write_smart(folder, **files):
  lines = {
    "cran.all.1400": ".I 1\n.T\na wing\n.A\nx\n.W\na wing\nin flow\n.I 2\n.T\nb\n.W\nplate\n",
    "cran.qry": "".join(f".I {7 * i:03}\n.W\nwhat of\n{i} ?\n" for i in range(1, 11)),
    "cranqrel": "".join(f"{i} {1 + i % 2} {1 + i % 4} \n" for i in range(1, 11)) + "1 1  -1",
  }
  for name, content in (lines | files).items():
    (folder / name).write_text(content)
  return folder


def test_smart_files(tmp_path):
  data = load_search(write_smart(tmp_path))
  assert data.documents == ("a wing in flow", "b plate")
  assert data.titles == ("a wing", "b")
  assert data.queries[:2] == ("what of 1 ?", "what of 2 ?")
  # Query 5 is the fifth, grade 2 is a gain of 3; query 10's grade of 3 one of 2.
  assert rows(data.parts["test"]) == [(4, 1, 3.0), (9, 0, 2.0)]
  assert rows(data.parts["valid"]) == [(0, 0, 0.0), (0, 1, 3.0), (5, 0, 2.0)]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("cranqrel", "1 1 5\n", r"cranqrel, line 1: '1 1 5': not a query, a document and a grade"),
    ("cranqrel", "1 1\n", r"cranqrel, line 1: '1 1': not"),
    ("cranqrel", "\n11 1 1\n", r"cranqrel, line 2: no query '11' in the collection"),
    ("cran.all.1400", "text\n", r"cran.all.1400, line 1: 'text' belongs to no field"),
    ("cran.all.1400", "", r"cran.all.1400: no record"),
    ("cran.all.1400", ".I 1\n.W\na\n.I 1\n", r"the id '1' stands there twice"),
  ],
)
def test_what_is_wrong_in_smart_files_is_named(tmp_path, name, content, message):
  with pytest.raises(DataError, match=message):
    load_search(write_smart(tmp_path, **{name: content}))


def test_texts_without_judgements(tmp_path):
  write_smart(tmp_path)
  assert load_queries(tmp_path).ids == tuple(map(str, range(1, 11)))
  assert load_documents(tmp_path).numbers() == {"1": 0, "2": 1}
  file = tmp_path / "some.jsonl"
  file.write_text('{"_id": 7, "title": "a", "text": "b c"}\n\n{"_id": "x", "text": "d"}\n')
  assert load_documents(file) == (("7", "x"), ("a b c", "d"), ("a", ""))
  assert load_queries(file).texts == ("b c", "d")


def test_missing_files_are_named(tmp_path):
  with pytest.raises(DataError, match="no collection"):
    load_search(tmp_path)
  (write_smart(tmp_path) / "cran.qry").unlink()
  with pytest.raises(DataError, match=r"no queries in it: give .*cran.qry"):
    load_search(tmp_path)


def test_cranfield(shared_data):
  data = load_search(shared_data / "cranfield", fold=2)
  assert (len(data.documents), len(data.queries)) == (1400, 225)
  assert data.document_ids[183] == "184"
  numbers = {name: np.unique(part.queries) + 1 for name, part in data.parts.items()}
  assert {name: len(found) for name, found in numbers.items()} == {
    "train": 135, "valid": 45, "test": 45
  }  # fmt: skip
  assert set(numbers["test"] % 5) == {2}
  assert set(numbers["valid"] % 5) == {3}
  assert (0, 183, 3.0) in rows(data.parts["train"])  # Its first line: 1 184 2.


def test_the_made_up_collection():
  data, again = make_search(40, num_queries=30), make_search(40, num_queries=30)
  assert data.documents == again.documents
  assert data.documents != make_search(40, num_queries=30, seed=1).documents
  for part in data.parts.values():
    for query, document, gain in rows(part):
      asked = {word.lstrip("wordname") for word in data.queries[query].split()}
      assert asked <= {w.lstrip("word") for w in data.documents[document].split()}
      title = {w.lstrip("word") for w in data.titles[document].split() if w.startswith("word")}
      assert gain == 1 + bool(asked & title)
  assert len({query for part in data.parts.values() for query in part.queries.tolist()}) == 30


def test_bm25_by_hand():
  documents = [
    "a red car",
    "Blue cars and bikes, cars!",
    "a green tree",
    "",
    "red tree trees: a car",
  ]
  words = [["red", "car"], ["blue", "car", "bike", "car"], ["green", "tree"], [],
           ["red", "tree", "tree", "car"]]  # fmt: skip
  mean = sum(map(len, words)) / 5

  def score(query, own, k1=1.2, b=0.6):
    total = 0.0
    for word in query:
      holding = sum(word in other for other in words)
      times = own.count(word)
      idf = math.log(1 + (5 - holding + 0.5) / (holding + 0.5))
      total += idf * times / (times + k1 * (1 - b + b * len(own) / mean))
    return total

  found = make_bm25(documents, k1=1.2, b=0.6)(["the cars?", "unknown", "tree car trees", ""])
  queries = (["car"], [], ["tree", "car", "tree"], [])
  expected = [[score(query, own) for own in words] for query in queries]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  with pytest.raises(ValueError, match="b=2"):
    make_bm25(documents, b=2)


def test_bm25_needs_its_library(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
  with pytest.raises(ImportError, match=r"pip install 'kdjax\[text\]'"):
    make_bm25(["a"])


def test_pairs_are_those_of_the_tokenizer():
  from kdjax.models import pair_rows

  words = tokens.train_tokenizer(["what is a wing", "the wing of a plane"], vocab_size=300)
  queries, documents = ["what is", "a"], ["the wing of", "plane"]
  alone = [tokens.encode(words, found, max_length=30)["tokens"] for found in (queries, documents)]
  expected = tokens.encode(words, queries, pairs=documents, max_length=59)
  found = pair_rows(*map(np.asarray, alone))
  for name, values in expected.items():
    kept = expected["segments"] > 0
    np.testing.assert_array_equal(np.where(kept, found[name], 0), np.where(kept, values, 0), name)
  np.testing.assert_array_equal(found["segments"], expected["segments"])
