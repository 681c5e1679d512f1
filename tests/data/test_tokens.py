"""Texts as tokens."""

import subprocess
import sys

import numpy as np
import pytest

from kdjax.data import text, tokens
from kdjax.data.errors import DataError


def test_a_learned_tokenizer_is_the_same_in_every_process():
  """Those of the library's other models are not."""
  code = (
    "import hashlib; from kdjax.data import text, tokens;"
    "t = text.make_texts(500).parts['train'].texts;"
    "print(hashlib.sha256(tokens.train_tokenizer(t, vocab_size=400).to_str().encode()).hexdigest())"
  )
  found = {
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    for _ in range(2)
  }
  assert len(found) == 1


def test_tokens_come_back_as_text():
  texts = text.make_texts(200).parts["train"].texts
  tokenizer = tokens.train_tokenizer(texts, vocab_size=400)
  said = "The plot is CLEVER , naïve 漢字 ?"
  rows = tokens.encode(tokenizer, [said, "fine"], max_length=40)
  first, last = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
  size = int(rows["segments"][0].sum())
  assert rows["tokens"][0, 0] == first
  assert rows["tokens"][0, size - 1] == last
  back = tokenizer.decode(rows["tokens"][0, :size])
  assert " ".join(back.split()) == "the plot is clever , naive 漢 字 ?"
  for name in ("tokens", "segments", "positions", "types"):
    assert rows[name].dtype == np.int32
    assert rows[name].shape == (2, 40)
  assert (rows["tokens"][1, 3:] == -1).all()
  assert rows["segments"][1].tolist() == [1] * 3 + [0] * 37
  assert rows["positions"][0, :size].tolist() == list(range(size))


def test_long_texts_and_pairs_are_cut():
  tokenizer = tokens.train_tokenizer(text.make_texts(200).parts["train"].texts, vocab_size=400)
  rows = tokens.encode(tokenizer, ["film " * 50], max_length=8)
  assert rows["segments"].sum() == 8
  assert rows["tokens"][0, -1] == tokenizer.token_to_id("[SEP]")
  pair = tokens.encode(tokenizer, ["the film"], max_length=9, pairs=["a plot " * 9])
  ends = np.nonzero(pair["tokens"][0] == tokenizer.token_to_id("[SEP]"))[0]
  assert len(ends) == 2
  assert ends[1] == 8
  assert pair["types"][0].tolist() == [0] * (ends[0] + 1) + [1] * (8 - ends[0])


def test_tokenizers_that_are_none_are_named(tmp_path):
  with pytest.raises(DataError, match=r"tokenizer.json: no such file"):
    tokens.load_tokenizer(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(DataError, match=r"tokenizer.json: no tokenizer"):
    tokens.load_tokenizer(tmp_path)
  saved = tokens.train_tokenizer(["a b"], vocab_size=300)
  (tmp_path / "tokenizer.json").write_text(saved.to_str())
  assert tokens.load_tokenizer(tmp_path).get_vocab() == saved.get_vocab()
