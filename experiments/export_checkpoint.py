"""Writes a trained text model as a Hugging Face folder.

python -m experiments.export_checkpoint --workdir=exported/small --model_dir=runs/small

`--workdir` becomes the folder: `config.json`, `model.safetensors`, the tokenizer's files and, of a
bi_encoder, what sentence-transformers reads. The flags here that take such a folder take it too.
What is quantised is written as the floats that it stands for.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from experiments import cli, families, files, problems, stored, texts
from experiments.tasks import SEARCH_FAMILIES, TEXT_FAMILIES
from kdjax import quant
from kdjax.data.tokens import SPECIAL, load_tokenizer, text_frame
from kdjax.flags import option
from kdjax.models import hub
from kdjax.models.linen import Sizes
from kdjax.types import Params

WRITTEN = ("bert", "decoder", "cross_encoder", "bi_encoder of a bert")
ROLES = dict(zip(SPECIAL, ("pad_token", "cls_token", "sep_token", "mask_token"), strict=True))


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.export_checkpoint."""

  model_dir: str = option("", "Workdir of the trained model.")


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Writes the folder, and says of which type it is and how large its weights are.

  Raises:
    ValueError: naming the family, if there is no such form for it. HubError: if its sizes have
      none, as those of blocks that were shrunk to different widths.
  """
  saved, folder = stored.load_model(config.model_dir, flag="--model_dir"), pathlib.Path(workdir)
  if (folder / "config.json").exists() and not hub.is_checkpoint(folder):
    raise stored.WorkdirError(f"{folder} holds a run; give a --workdir of its own for the folder")
  family, sizes, params = as_written(saved)
  types = hub.types_of(family, sizes)
  kind = types[0] if types else {"bert": "bert", "decoder": "llama"}[family]
  path = saved.folder / texts.TOKENIZER_FILE
  words = load_tokenizer(path) if path.exists() else problems.tokenizer_of(saved.data, saved.family)
  hub.save(folder, hub.Checkpoint(kind, family, sizes, params, _said(saved, family, words)))
  _write_tokenizer(folder, words, sizes)
  size = sum(path.stat().st_size for path in hub.weights_in(folder))
  print(f"{saved.folder} as a {kind}, {size / 1e6:.3f} MB: {folder}", flush=True)
  return {"job": "export_checkpoint", "model_type": kind, "bytes": size}


def as_written(saved: stored.SavedModel) -> tuple[str, Sizes, Params]:
  """Family, sizes and params of the bert or decoder that a model is.

  Raises:
    ValueError: if it is none.
  """
  family, sizes = saved.family, families.arguments(saved.sizes)
  if family in SEARCH_FAMILIES:
    family = sizes.pop("encoder", "bert")
    sizes = {k: v for k, v in sizes.items() if k not in ("separators", "scale")}
  if family not in ("bert", "decoder"):
    kind = saved.family if family == saved.family else f"{saved.family} of a {family}"
    raise ValueError(
      f"--model_dir={saved.folder} is a {kind}, for which Hugging Face's libraries have no form; "
      f"there is one for {', '.join(WRITTEN)}"
    )
  params = quant.dequantize_params(saved.params)
  if family == "decoder":
    sizes |= {"dropout": 0.0}  # Of training alone; most types have no word for it.
  elif not sizes.get("num_types", 2) and not hub.types_of(family, sizes):
    # A BERT has a table of types: zeros change nothing.
    table = np.zeros((2, params["token_embedding"]["embedding"].shape[1]), np.float32)
    sizes, params = {**sizes, "num_types": 2}, {**params, "type_embedding": {"embedding": table}}
  return family, sizes, params


def _said(saved: stored.SavedModel, family: str, words: Any) -> dict[str, Any]:
  """What config.json should say beyond sizes: the labels' names, where texts begin and end."""
  if family == "decoder":
    ends = zip(("bos_token_id", "eos_token_id"), text_frame(words), strict=True)
    return {name: ids[0] for name, ids in ends if ids}
  if saved.family not in TEXT_FAMILIES:
    return {}
  names = problems.label_names(saved.data, saved.family)
  labels = {"id2label": {str(i): n for i, n in enumerate(names)}}
  return labels | {"label2id": {n: i for i, n in enumerate(names)}} if names else {}


def _write_tokenizer(folder: pathlib.Path, words: Any, sizes: Sizes) -> None:
  """tokenizer.json as it was, and what transformers asks of it."""
  words.no_truncation()
  words.no_padding()
  longest = sizes["max_length"] - sizes.get("position_offset", 0)
  said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
  said |= {role: name for name, role in ROLES.items() if words.token_to_id(name) is not None}
  for name, text in (
    (texts.TOKENIZER_FILE, words.to_str()),
    ("tokenizer_config.json", json.dumps(said, indent=2)),
  ):
    with files.whole(folder / name) as part:
      part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
  cli.main(Config, run, None)
