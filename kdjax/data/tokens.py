"""Texts as tokens: tokenizers learned, read and run."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdjax.data.errors import DataError

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(texts: Sequence[str], *, vocab_size: int = 8000) -> Any:
  """A tokenizer of lower-case words learned from texts: byte-level BPE, with BERT's special tokens.

  The same texts give the same tokenizer: what the library learns as WordPiece or Unigram differs
  from one process to the next.

  Args:
    texts: at least one.
    vocab_size: tokens at most, the special ones and 256 bytes too.

  Returns:
    A `tokenizers.Tokenizer`.

  Raises:
    ImportError: if the library is not installed.

  Reference:
    R. Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, ACL 2016.
  """
  lib = _tokenizers()
  tokenizer = lib.Tokenizer(lib.models.BPE())
  tokenizer.normalizer = lib.normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=True)
  tokenizer.decoder = lib.decoders.ByteLevel()
  trainer = lib.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL),
    initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  first, last = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
  tokenizer.post_processor = lib.processors.BertProcessing(("[SEP]", last), ("[CLS]", first))
  return tokenizer


def load_tokenizer(path: str | pathlib.Path) -> Any:
  """Reads `tokenizer.json`, or that of a checkpoint folder.

  Raises:
    DataError: naming the file, if it is missing or damaged. ImportError: as `train_tokenizer`.
  """
  path = pathlib.Path(path)
  path = path / "tokenizer.json" if path.is_dir() else path
  if not path.exists():
    raise DataError(f"{path}: no such file; a tokenizer is a tokenizer.json, or a folder with one")
  try:
    return read_tokenizer(path.read_text(encoding="utf-8"))
  except Exception as error:  # The library raises no type of its own.
    raise DataError(f"{path}: no tokenizer: {error}") from error


def read_tokenizer(said: str) -> Any:
  """The `tokenizers.Tokenizer` that its `to_str()` tells of."""
  return _tokenizers().Tokenizer.from_str(said)


def mask_id(tokenizer: Any) -> int:
  """The id of the token that stands for a hidden one: `[MASK]`, or `<mask>`.

  Raises:
    DataError: if the tokenizer has none.
  """
  for name in ("[MASK]", "<mask>"):
    if (found := tokenizer.token_to_id(name)) is not None:
      return int(found)
  raise DataError("the tokenizer has neither [MASK] nor <mask>: no token can be hidden")


def ordinary_ids(tokenizer: Any) -> np.ndarray:
  """Which tokens stand for text: bool `[V]`, False for special ones such as `[CLS]`."""
  ordinary = np.ones(tokenizer.get_vocab_size(), bool)
  added = tokenizer.get_added_tokens_decoder()
  ordinary[[number for number, token in added.items() if token.special]] = False
  return ordinary


def encode(
  tokenizer: Any,
  texts: Sequence[str],
  *,
  max_length: int,
  pairs: Sequence[str] | None = None,
  behind: Sequence[int] = (),
) -> dict[str, np.ndarray]:
  """Texts as rows of tokens, with the tokenizer's own special ones; longer texts are cut.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.
    texts: N of them.
    max_length: L; a row's tokens at most.
    pairs: a second text each, such as a document after its query; of both the longer is cut first.
    behind: tokens to put behind each text that leaves room for them, as `kdjax.data.ends` finds
      them; what was cut does not end.

  Returns:
    int32 `[N, L]` each: `tokens`, -1 where a text has ended; `segments`, 1 and 0 there;
    `positions`; and `types`, 1 in the second text.
  """
  tokenizer.no_padding()
  tokenizer.enable_truncation(max_length)
  given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
  rows = {
    name: np.full([len(given), max_length], -(name == "tokens"), np.int32)
    for name in ("tokens", "segments", "positions", "types")
  }
  for row, found in enumerate(tokenizer.encode_batch(given)):
    ids, types = found.ids, found.type_ids
    if len(ids) + len(behind) <= max_length:
      ids, types = [*ids, *behind], [*types, *types[-1:] * len(behind)]
    size = len(ids)
    rows["tokens"][row, :size] = ids
    rows["segments"][row, :size] = 1
    rows["positions"][row, :size] = range(size)
    rows["types"][row, :size] = types
  return rows


def text_frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The special tokens that a tokenizer puts before a text and those that it puts behind it.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.

  Returns:
    Their ids; either may be empty.

  Example:
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=300)
    >>> [[tokenizer.id_to_token(i) for i in ids] for ids in text_frame(tokenizer)]
    [['[CLS]'], ['[SEP]']]
  """
  tokenizer.no_truncation()
  found = tokenizer.encode("a")
  own = [i for i, special in enumerate(found.special_tokens_mask) if not special]
  first, last = (own[0], own[-1]) if own else (0, len(found.ids) - 1)
  return tuple(found.ids[:first]), tuple(found.ids[last + 1 :])


def _tokenizers() -> Any:
  try:
    import tokenizers
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.normalizers
    import tokenizers.pre_tokenizers
    import tokenizers.processors
    import tokenizers.trainers
  except ImportError as error:
    raise ImportError("texts need the library tokenizers: pip install 'kdjax[text]'") from error
  return tokenizers
