"""Labelled texts from tables."""

import numpy as np
import polars as pl
import pytest

from kdjax.data import text
from kdjax.data.errors import DataError

ROWS = [(f"text number {i} , so to say", str(i % 3)) for i in range(40)]


def write(path, rows=ROWS, *, names=None, separator="\t"):
  lines = [separator.join(row) for row in ([names] if names else []) + list(rows)]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


def same(a, b):
  return a.texts == b.texts and np.array_equal(a.labels, b.labels)


def test_a_folder_with_its_own_parts(tmp_path):
  write(tmp_path / "train.tsv", ROWS[:30])
  write(tmp_path / "dev.tsv", ROWS[30:35], names=("Label", "Sentence"))
  (tmp_path / "dev.tsv").write_text(
    "Label\tSentence\n" + "".join(f"{label}\t{said}\n" for said, label in ROWS[30:35])
  )
  pl.DataFrame(ROWS[35:], schema=["text", "label"], orient="row").write_parquet(
    tmp_path / "test.parquet"
  )
  data = text.load_texts(tmp_path)
  assert data.classes == ("0", "1", "2")
  assert data.note == "parts as given"
  for name, rows in (("train", ROWS[:30]), ("valid", ROWS[30:35]), ("test", ROWS[35:])):
    assert data.parts[name].texts == tuple(said for said, _ in rows)
    assert data.parts[name].labels.tolist() == [int(label) for _, label in rows]


def test_one_file_is_split_and_the_same_each_time(tmp_path):
  path = write(tmp_path / "all.csv", [(f'"{a}"', b) for a, b in ROWS], separator=",")
  data, again = (text.load_texts(path, test_fraction=0.2, seed=3) for _ in range(2))
  assert [len(data.parts[name].texts) for name in ("train", "valid", "test")] == [28, 4, 8]
  assert all(same(data.parts[name], again.parts[name]) for name in data.parts)
  found = [row for part in data.parts.values() for row in zip(part.texts, part.labels, strict=True)]
  assert sorted((said, str(label)) for said, label in found) == sorted(ROWS)
  assert data.note == "test 20% of train, valid 10% of train"
  other = text.load_texts(path, test_fraction=0.2, seed=4)
  assert not same(other.parts["test"], data.parts["test"])


def test_columns_by_name_and_classes_by_words(tmp_path):
  rows = [("bad" if i % 2 else "good", f"said {i}", "x") for i in range(30)] + [("bad", "  ", "x")]
  path = write(tmp_path / "t.csv", rows, names=("mood", "remark", "rest"), separator=",")
  data = text.load_texts(path, text_column="remark", label_column="Mood")
  assert data.classes == ("bad", "good")
  whole = {said: label for part in data.parts.values() for said, label in zip(*part, strict=True)}
  assert len(whole) == 30
  assert whole["said 1"] == 0
  with pytest.raises(
    DataError, match=r"no column label or .* among mood, remark, rest; name it by"
  ):
    text.load_texts(path, text_column="remark")
  with pytest.raises(DataError, match=r"no column tune among .*--label_column"):
    text.load_texts(path, text_column="remark", label_column="tune")


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({}, "no train.tsv, train.csv or train.parquet"),
    ({"train.tsv": ROWS, "train.csv": ROWS}, "train.tsv and train.csv are both train"),
    ({"train.tsv": [("", "1")]}, r"train.tsv: no texts in it"),
    ({"train.tsv": [("a", "1"), ("b", "")]}, r"train.tsv: 1 texts have no label"),
    ({"train.tsv": [("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")]}, "one class alone, '1'"),
    ({"train.tsv": [("a", "1"), ("b", "2")]}, "2 texts are too few"),
  ],
)
def test_what_is_missing_is_named(tmp_path, files, message):
  for name, rows in files.items():
    write(tmp_path / name, rows)
  with pytest.raises(DataError, match=message):
    text.load_texts(tmp_path)


def test_texts_without_labels(tmp_path):
  path = write(tmp_path / "t.tsv", [(said,) for said, _ in ROWS])
  data = text.load_texts(path, labels=False)
  assert data.classes == ("",)
  found = [said for part in data.parts.values() for said in part.texts]
  assert sorted(found) == sorted(said for said, _ in ROWS)
  named = write(tmp_path / "n.tsv", [("x", said) for said, _ in ROWS], names=("id", "title"))
  assert text.load_texts(named, labels=False).parts["test"].texts == data.parts["test"].texts


def test_a_damaged_table_is_named(tmp_path):
  (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
  with pytest.raises(DataError, match=r"train.parquet: no table"):
    text.load_texts(tmp_path)


def test_made_up_texts_can_be_told_apart():
  data = text.make_texts(300, seed=1)
  good = ("fine", "great", "lovely", "bright", "clever")

  def guess(said):
    words = said.split()
    at = [i for i, word in enumerate(words) if word in good]
    turned = "not" in words
    return int(bool(at) != turned)

  part = data.parts["train"]
  assert [guess(said) for said in part.texts] == part.labels.tolist()
