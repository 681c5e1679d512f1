"""Embeddings of the items of a log, made of their texts by a pretrained encoder.

python -m experiments.embed --workdir=runs/titles --dataset=path/to/log --checkpoint=path/to/minilm

Writes `embeddings.npz` (`ids`, as the log has them, and `embeddings`, float32 `[V, D]`), which
`--item_embeddings` of the other binaries reads. Tables of images or sounds in the same form do too.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import cli, families, meshes, pretrained, problems, runs, texts
from experiments.config import DataConfig, LoadConfig
from kdjax import serve
from kdjax.data.errors import DataError
from kdjax.data.text import TEXT_COLUMNS, encode, load_tokenizer
from kdjax.flags import group, option

EMBEDDINGS_FILE = "embeddings.npz"


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
  load: LoadConfig = group(LoadConfig)
  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Encodes the text of every item; items without one get zeros."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  if not config.checkpoint:
    raise ValueError("--checkpoint: give the folder of a pretrained encoder")
  dataset = problems.load_data(config.data)
  found = item_texts(dataset, config.columns)
  there = [i for i, text in enumerate(found) if text]
  own = config.data.tokenizer or config.checkpoint
  mesh = meshes.mesh_of(config.load.mesh)
  dtype = config.load.checkpoint_dtype
  checkpoint = pretrained.load(
    config.checkpoint, head="pool", tokenizer=own, dtype=dtype, mesh=mesh
  )
  tokenizer = load_tokenizer(own)
  rows = encode(tokenizer, [found[i] for i in there], max_length=config.max_tokens)
  computed_in = pretrained.dtype_of(checkpoint.params)
  model = families.make_model(checkpoint.family, checkpoint.sizes, computed_in)
  made = serve.encode_texts(
    *meshes.placed(model.apply, checkpoint.params, mesh),
    {name: values for name, values in rows.items() if name != "types"},
    tokens_per_call=config.tokens_per_call,
  )
  embeddings = np.zeros((len(found), made.shape[1]), np.float32)
  embeddings[there] = made
  ids = np.array([str(item) for item in dataset.item_ids])
  texts.write_embeddings(folder / EMBEDDINGS_FILE, ids, embeddings)
  result = {
    "job": "embed",
    "items": len(found),
    "without_text": len(found) - len(there),
    "width": int(made.shape[1]),
    "file": EMBEDDINGS_FILE,
  }
  print(f"{len(there):,} of {len(found):,} items embedded in {made.shape[1]} dimensions")
  runs.write_result(folder, result)
  return result


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
