"""What ends texts: the tokenizer's frame, or what a checkpoint folder says."""

import json

import numpy as np
import pytest

from kdjax.data import tokens
from kdjax.data.ends import Ends, find_ends, save_ends, stop_tokens
from kdjax.data.errors import DataError


def say(folder, file, **values):
  (folder / file).write_text(json.dumps(values))


def bare():
  """A tokenizer that puts nothing around texts, as GPT-2's and Qwen's."""
  import tokenizers.processors

  tokenizer = tokens.train_tokenizer(["a film", "the plot"], vocab_size=300)
  tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
  return tokenizer


def test_the_folder_says_what_ends_texts(tmp_path):
  assert stop_tokens(tmp_path) == ()
  say(tmp_path, "config.json", eos_token_id=5)
  assert stop_tokens(tmp_path) == (5,)
  say(tmp_path, "generation_config.json", temperature=0.5)
  assert stop_tokens(tmp_path) == (5,)  # That is silent.
  say(tmp_path, "generation_config.json", eos_token_id=[7, 5, 7])
  assert stop_tokens(tmp_path) == (7, 5)
  assert stop_tokens(tmp_path / "tokenizer.json") == (7, 5)
  save_ends(tmp_path, (1, 2))
  assert stop_tokens(tmp_path) == (1, 2)
  say(tmp_path, "generation_config.json", eos_token_id=None)
  save_ends(tmp_path, ())  # Writes nothing.
  assert stop_tokens(tmp_path) == (5,)


def test_frames_come_first(tmp_path):
  say(tmp_path, "config.json", eos_token_id=[9, 8])
  framed = tokens.train_tokenizer(["a film"], vocab_size=300)
  own = framed.token_to_id("[SEP]")
  assert find_ends(framed) == Ends((), (own,))
  assert find_ends(framed, tmp_path) == Ends((), (own, 9, 8))
  assert find_ends(bare()) == Ends((), ())
  assert find_ends(bare(), tmp_path / "none", tmp_path) == Ends((9,), (9, 8))


@pytest.mark.parametrize("said", ["2", [1, "2"], 1.0, True, -1])
def test_what_is_no_token_is_named(tmp_path, said):
  say(tmp_path, "config.json", eos_token_id=said)
  with pytest.raises(DataError, match=r"config.json: eos_token_id=.* must be the number"):
    stop_tokens(tmp_path)


def test_damage_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(DataError, match=r"config.json: no JSON"):
    stop_tokens(tmp_path)
  say(tmp_path, "config.json", eos_token_id=300)
  with pytest.raises(DataError, match=r"names \[300\], but the tokenizer has 2\d\d tokens"):
    find_ends(bare(), tmp_path)


def test_ends_stand_behind_texts_that_leave_room():
  tokenizer = bare()
  given = ["a film", "a film the plot", "a film the plot a film"]
  plain = tokens.encode(tokenizer, given, max_length=4)
  ended = tokens.encode(tokenizer, given, max_length=4, behind=(3,))
  sizes = plain["segments"].sum(axis=1)
  assert (sizes[0], sizes[2]) == (2, 4), "one short, one cut"
  for row in range(3):
    size, room = sizes[row], sizes[row] < 4
    np.testing.assert_array_equal(ended["tokens"][row, :size], plain["tokens"][row, :size])
    assert ended["segments"][row].sum() == size + room
    assert ended["tokens"][row, size:].tolist() == ([3] + [-1] * (3 - size) if room else [])
    assert ended["positions"][row, : size + room].tolist() == list(range(size + room))
  assert not ended["types"].any()
