"""How texts end: what stands behind them in training, and what ends those that a model writes."""

import json
import pathlib
from typing import Any, NamedTuple

from kdjax.data.errors import DataError
from kdjax.data.tokens import text_frame

FILE = "generation_config.json"  # As Hugging Face's libraries call it.
_KEY = "eos_token_id"


class Ends(NamedTuple):
  """How texts of a tokenizer end.

  Attributes:
    behind: tokens that `kdjax.data.tokens.encode` shall put behind a text, where the tokenizer's
      own frame puts none.
    stop: tokens of which any ends a text that is written.
  """

  behind: tuple[int, ...]
  stop: tuple[int, ...]


def stop_tokens(path: str | pathlib.Path) -> tuple[int, ...]:
  """The tokens that a checkpoint folder says to end texts: `eos_token_id`, one or a list.

  Args:
    path: the folder, or a file in it. What `generation_config.json` says counts; where it is silent
      what `config.json` says.

  Returns:
    Their ids, () where neither names any.

  Raises:
    DataError: naming the file, if it is no JSON, or its `eos_token_id` is neither a number nor a
      list of them.

  Example:
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "config.json").write_text('{"eos_token_id": [7, 9]}')
    >>> stop_tokens(folder)
    (7, 9)
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  for file in (folder / FILE, folder / "config.json"):
    if not file.exists():
      continue
    try:
      said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
      raise DataError(f"{file}: no JSON: {error}") from error
    found = said.get(_KEY) if isinstance(said, dict) else None
    listed = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in listed):
      raise DataError(f"{file}: {_KEY}={found!r} must be the number of a token, or a list of them")
    if listed:
      return tuple(dict.fromkeys(listed))
  return ()


def find_ends(tokenizer: Any, *paths: str | pathlib.Path) -> Ends:
  """How texts end: as the tokenizer's own frame says, and as folders do.

  Where the frame puts nothing behind a text, the first token that a folder names stands there.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.
    paths: folders, or files in them, as for `stop_tokens`; the first that names tokens counts.

  Returns:
    Ends; empty where nothing is said.

  Raises:
    DataError: as `stop_tokens`, or if the tokenizer has no such token.
  """
  own = text_frame(tokenizer)[1]
  named = next((found for path in paths if (found := stop_tokens(path))), ())
  count = tokenizer.get_vocab_size()
  if beyond := [token for token in named if token >= count]:
    raise DataError(
      f"{', '.join(map(str, paths))}: {_KEY} names {beyond}, but the tokenizer has {count:,} tokens"
    )
  return Ends(() if own else named[:1], tuple(dict.fromkeys((*own, *named))))


def save_ends(folder: str | pathlib.Path, stop: tuple[int, ...]) -> None:
  """Writes `generation_config.json`, as `stop_tokens` reads it; none where nothing ends texts."""
  if stop:
    file = pathlib.Path(folder) / FILE
    file.write_text(json.dumps({_KEY: list(stop)}, indent=2) + "\n", encoding="utf-8")
