"""Embeddings of the items of a log, made of their texts by a pretrained encoder.

python -m experiments.embed --workdir=runs/titles --dataset=path/to/log --checkpoint=path/to/minilm

Writes `embeddings.npz` (`ids`, as the log has them, and `embeddings`, float32 `[V, D]`), which
`--item_embeddings` of the other binaries reads. Tables of images or sounds in the same form do too.
A stopped run goes on with the texts that are missing.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from experiments import cli, families, files, meshes, pretrained, problems, runs, texts
from experiments.config import DataConfig, LoadConfig
from kdjax import serve
from kdjax.data.errors import DataError
from kdjax.data.text import TEXT_COLUMNS
from kdjax.data.tokens import load_tokenizer
from kdjax.flags import group, option

EMBEDDINGS_FILE = "embeddings.npz"
TEXTS_PER_PART = 4096  # Between two saves.


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.embed."""

  checkpoint: str = option("", "A Hugging Face checkpoint folder: a BERT or a decoder.")
  columns: tuple[str, ...] = option(
    (),
    "Columns of the items' attributes, joined into one text; a well-known one (title, text, ...) "
    "when not given.",
  )
  max_tokens: int = option(64, "Tokens of a text that are read.", lower=2)
  tokens_per_call: int | None = option(
    None, "Positions of one call; what suits the device when not given.", lower=1
  )
  progress: bool = option(True, "Draw a progress bar.")
  load: LoadConfig = group(LoadConfig)
  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Encodes the text of every item, part by part, each kept when it is done, and joins them.

  Items without a text get zeros.
  """
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  if not config.checkpoint:
    raise ValueError("--checkpoint: give the folder of a pretrained encoder")
  dataset = problems.load_data(config.data)
  found = item_texts(dataset, config.columns)
  there = [i for i, text in enumerate(found) if text]
  if not there:
    raise DataError("no item has a text; name other columns by --columns")
  encode_part = load_encoder(config)
  parts = folder / "parts"
  parts.mkdir(exist_ok=True)
  made = []
  with tqdm(total=len(there), desc=folder.name, unit="text", disable=not config.progress) as bar:
    for start in range(0, len(there), TEXTS_PER_PART):
      chosen = there[start : start + TEXTS_PER_PART]
      path = parts / f"{start:09d}.npy"
      if not path.exists():
        new = encode_part([found[i] for i in chosen])
        with files.whole(path) as part, part.open("wb") as file:
          np.save(file, new)
      made.append(_read_part(path, len(chosen)))
      bar.update(len(chosen))
  width = made[0].shape[1]
  embeddings = np.zeros((len(found), width), np.float32)
  embeddings[there] = np.concatenate(made)
  ids = np.array([str(item) for item in dataset.item_ids])
  texts.write_embeddings(folder / EMBEDDINGS_FILE, ids, embeddings)
  result = {
    "job": "embed",
    "items": len(found),
    "without_text": len(found) - len(there),
    "width": int(width),
    "file": EMBEDDINGS_FILE,
  }
  print(f"{len(there):,} of {len(found):,} items embedded in {width} dimensions")
  runs.write_result(folder, result)
  shutil.rmtree(parts)
  return result


def load_encoder(config: Config) -> Callable[[list[str]], np.ndarray]:
  """From texts to embeddings, float32 `[N, D]`, by the encoder that the flags name."""
  own = config.data.tokenizer or config.checkpoint
  mesh = meshes.mesh_of(config.load.mesh)
  dtype = config.load.checkpoint_dtype
  checkpoint = pretrained.load(
    config.checkpoint, head="pool", tokenizer=own, dtype=dtype, mesh=mesh
  )
  tokenizer = load_tokenizer(own)
  computed_in = pretrained.dtype_of(checkpoint.params)
  model = families.make_model(checkpoint.family, checkpoint.sizes, computed_in)
  apply, params = meshes.placed(model.apply, checkpoint.params, mesh)

  def encode_part(part: list[str]) -> np.ndarray:
    rows = texts.encode_alone(tokenizer, part, max_length=config.max_tokens)
    return serve.encode_texts(apply, params, rows, tokens_per_call=config.tokens_per_call)

  return encode_part


def _read_part(path: pathlib.Path, count: int) -> np.ndarray:
  """The embeddings of a part.

  Raises:
    DataError: naming the file, if it is not whole, or of other texts.
  """
  try:
    made = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f"{path}: damaged ({error}); delete it to make it again") from error
  if made.ndim != 2 or len(made) != count:
    raise DataError(
      f"{path}: embeddings {made.shape} for {count} texts: the items have changed; delete "
      f"{path.parent}"
    )
  return made


def item_texts(dataset: Any, columns: tuple[str, ...]) -> list[str]:
  """The text of every item, "" where the log knows none.

  Raises:
    DataError: naming the columns there are, if none of the wanted is among them.
  """
  items = dataset.items
  known = [] if items is None else items.columns
  chosen = list(columns) or [name for name in known if name.lower() in TEXT_COLUMNS][:1]
  if not chosen or set(chosen) - set(known):
    wanted = ", ".join(columns) or " or ".join(TEXT_COLUMNS)
    raise DataError(
      f"items have no attribute {wanted}; there are {', '.join(known) or 'none'}: name some by "
      "--columns, or their file by --items_path"
    )
  parts = [[("" if x is None else str(x)).strip() for x in items[name]] for name in chosen]
  return [" ".join(part for part in row if part) for row in zip(*parts, strict=True)]


if __name__ == "__main__":
  cli.main(Config, run, None)
