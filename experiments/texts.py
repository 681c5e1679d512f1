"""The text task: which class a text belongs to (bert, text_gru, text_cnn, static)."""

import functools
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import classes as class_tasks
from experiments import files, loss_terms, meshes, prepared, pretrained
from experiments.config import DataConfig, ModelConfig
from experiments.tasks import Task
from kdjax.data.ends import Ends, find_ends, save_ends, stop_tokens
from kdjax.data.errors import DataError
from kdjax.data.text import TextDataset, load_texts, make_texts
from kdjax.data.tokens import encode, load_tokenizer, train_tokenizer
from kdjax.models.linen import Sizes
from kdjax.types import Params

TOKENIZER_FILE = "tokenizer.json"
FEATURES = "item_features_"  # Parameters called so are data, and are not trained.


@functools.lru_cache(maxsize=4)
def load(config: DataConfig, *, labels: bool = True) -> TextDataset:
  """The texts that --dataset names: a table or a folder of tables, or `synthetic`.

  Args:
    config: the flags.
    labels: whether the texts need any.

  Raises:
    DataError: naming the file and the mend.
  """
  return prepared.labelled_texts(config, lambda: _read(config, labels=labels), labels=labels)


def _read(config: DataConfig, *, labels: bool) -> TextDataset:
  if config.dataset == "synthetic":
    return make_texts(config.synthetic_users, seed=config.data_seed)
  return load_texts(
    config.dataset,
    text_column=config.text_column,
    label_column=config.label_column,
    labels=labels,
    valid_fraction=config.valid_fraction,
    test_fraction=config.test_fraction,
    seed=config.data_seed,
  )


@functools.lru_cache(maxsize=2)
def tokenizer(config: DataConfig) -> Any:
  """That of --tokenizer, or one learned from the training texts."""
  if config.tokenizer:
    return load_tokenizer(config.tokenizer)

  def learned() -> Any:
    train = load(config, labels=False).parts["train"]
    return train_tokenizer(list(train.texts), vocab_size=config.vocab_size)

  return prepared.tokenizer(config, learned)


class Encoded(NamedTuple):
  """Texts as tokens.

  Attributes:
    parts: of every part, rows of `kdjax.data.tokens.encode` without types.
    options: what they depend on beside the texts, JSON-ready.
  """

  parts: dict[str, dict[str, np.ndarray]]
  options: dict[str, Any]


def encoded(
  config: DataConfig, dataset: TextDataset, words: Any, *, behind: Sequence[int] = ()
) -> Encoded:
  """The texts of every part as tokens, with those `behind` each that has room."""

  def make() -> dict[str, dict[str, np.ndarray]]:
    return {
      name: encode_alone(words, part.texts, max_length=config.max_length, behind=behind)
      for name, part in dataset.parts.items()
    }

  options = {
    "tokenizer": fingerprint(words),
    "max_length": config.max_length,
    "behind": list(behind),
    "labelled": any(dataset.classes),
  }
  return Encoded(prepared.rows_by_part(config, "tokens", options, make), options)


def encode_alone(words: Any, texts: Sequence[str], **options: Any) -> dict[str, np.ndarray]:
  """`kdjax.data.tokens.encode` without types: one text a row has but one."""
  found = encode(words, list(texts), **options)
  return {name: values for name, values in found.items() if name != "types"}


def fingerprint(words: Any) -> str:
  """Of a tokenizer: another for any that may give other tokens to a text that is not cut."""
  said = json.loads(words.to_str())
  lasting = {name: x for name, x in said.items() if name not in ("truncation", "padding")}
  return hashlib.blake2b(json.dumps(lasting).encode(), digest_size=16).hexdigest()


def ends(config: DataConfig, words: Any) -> Ends:
  """How texts end that train a language model: by the tokenizer, and by the folder it is from."""
  return find_ends(words, *([config.tokenizer] if config.tokenizer else []))


def save_tokenizer(config: DataConfig, folder: pathlib.Path, words: Any) -> None:
  """Keeps the tokenizer with the run, whose model is nothing without it, and what ends its texts.

  Raises:
    DataError: if the run has another one already.
  """
  check_tokenizer(config, folder, words)
  (folder / TOKENIZER_FILE).write_text(words.to_str(), encoding="utf-8")
  if config.tokenizer:
    save_ends(folder, stop_tokens(config.tokenizer))


def tokenizer_in(folder: pathlib.Path) -> Any | None:
  """The tokenizer that a run keeps; None where it has none."""
  path = folder / TOKENIZER_FILE
  return load_tokenizer(path) if path.exists() else None


def other_tokenizer(folder: pathlib.Path, words: Any) -> Any | None:
  """The tokenizer of a run where it has other tokens than `words`."""
  found = tokenizer_in(folder)
  return None if found is None or found.get_vocab() == words.get_vocab() else found


def check_tokenizer(
  config: DataConfig, folder: pathlib.Path, words: Any, *, mend: str = ""
) -> None:
  """Whether a run that has a tokenizer has the configured one, `words`.

  Raises:
    DataError: if it does not; `mend` is what else may be done.
  """
  if other_tokenizer(folder, words) is not None:
    path = folder / TOKENIZER_FILE
    raise DataError(
      f"{path} has other tokens than --tokenizer={config.tokenizer!r} gives; use "
      f"--tokenizer={path}{mend}"
    )


def describe(dataset: TextDataset) -> str:
  """One line: how many texts in which part."""
  counts = ", ".join(f"{name} {len(part.labels):,}" for name, part in dataset.parts.items())
  return f"texts | classes {', '.join(dataset.classes)} | {counts} | {dataset.note}"


def make_task(dataset: TextDataset, config: DataConfig, family: str) -> Task:
  """The text task."""
  words = tokenizer(config)
  inputs = encoded(config, dataset, words).parts
  task = class_tasks.make_task(
    "text",
    inputs,
    {name: part.labels for name, part in dataset.parts.items()},
    family,
    {
      "vocab_size": words.get_vocab_size(),
      "max_length": config.max_length,
      "num_labels": len(dataset.classes),
      "head": "labels",
    },
    count="num_labels",
    request=make_request(inputs["test"]),
    makers=loss_terms.TEXT,
  )
  lengths = np.count_nonzero(inputs["train"]["segments"], axis=1)
  return task._replace(lengths=lengths, cut=("tokens", "segments", "positions"))


def make_request(rows: Mapping[str, np.ndarray]) -> Callable[[int], dict[str, jnp.ndarray]]:
  """`(count) -> rows`, each the longest of these, filled up to the full length."""
  length = rows["tokens"].shape[1]
  first = int(np.argmax(rows["segments"].sum(axis=1)))
  longest = rows["tokens"][first : first + 1]
  longest = np.where(longest < 0, longest[:, :1], longest)
  kept = [name for name in rows if name == "types"]

  def request(count: int) -> dict[str, jnp.ndarray]:
    types = {name: jnp.asarray(np.resize(rows[name][first], (count, length))) for name in kept}
    return types | {
      "tokens": jnp.asarray(np.resize(longest, (count, length))),
      "segments": jnp.ones((count, length), jnp.int32),
      "positions": jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (count, length)),
    }

  return request


def model_sizes(config: ModelConfig, sizes: Sizes) -> Sizes:
  """The arguments of a text family's `make_`, from what the data and the flags say.

  Raises:
    ValueError: naming the flag that does not fit.
  """
  family, dim = config.model, config.dim
  transformer = family in ("bert", "decoder")
  if config.checkpoint:
    if not transformer:
      raise ValueError(f"--checkpoint does not fit --model={family}; use bert or decoder")
    return pretrained.sizes_of(config.checkpoint, family, sizes)
  if transformer:
    if dim % config.heads:
      raise ValueError(f"--heads={config.heads} does not divide --dim={dim}")
    return sizes | {
      "dim": dim,
      "num_layers": config.layers,
      "num_heads": config.heads,
      "mlp_dim": config.mlp_dim or 4 * dim,
      **({"num_types": 0} if family == "bert" else {}),
    }
  sizes = {name: size for name, size in sizes.items() if name != "max_length"}
  width = config.mlp_dim or dim
  own: dict[str, Sizes] = {
    "static": {},
    "text_gru": {"hidden_dim": width, "num_layers": config.layers, "cell": config.cell},
    "text_cnn": {"channels": width},
  }
  return sizes | {"dim": dim} | own[family]


def start_from(
  config: ModelConfig,
  sizes: Sizes,
  params: Params,
  item_ids: Sequence[Any] = (),
  classes: Sequence[str] = (),
  *,
  mesh: Mesh | None = None,
) -> Params:
  """Fresh params with those of --checkpoint and the tables of --item_embeddings, where given.

  Those of --checkpoint lie on the mesh, if there is one.
  """
  if config.checkpoint:
    own, said = pretrained.params_of(
      config.checkpoint, config.model, sizes, classes, dtype=config.checkpoint_dtype, mesh=mesh
    )
    fresh = ", ".join(name for name in params if name not in own)
    if said or fresh:
      print(f"--checkpoint={config.checkpoint}: fresh: {fresh or 'none'}; {said}", flush=True)
    params = {**params, **meshes.put(own, mesh)}
  for number, path in enumerate(config.item_embeddings):
    table = {"embedding": jnp.asarray(item_features(path, item_ids))}
    params = {**params, f"{FEATURES}{number}": table}
  return params


def write_embeddings(path: pathlib.Path, ids: np.ndarray, embeddings: np.ndarray) -> None:
  """Writes a table of item embeddings, whole or not at all."""
  with files.whole(path) as part, part.open("wb") as file:
    np.savez(file, ids=ids, embeddings=embeddings)


@functools.lru_cache(maxsize=4)
def read_embeddings(path: str, *, flag: str = "--item_embeddings") -> tuple[np.ndarray, np.ndarray]:
  """The ids and rows of a table of item embeddings; a folder stands for the file in it.

  Raises:
    DataError: naming the file, if it is missing or no such table.
  """
  file = pathlib.Path(path)
  file = file / "embeddings.npz" if file.is_dir() else file
  try:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
      ids, rows = found["ids"].astype(str), found["embeddings"].astype(np.float32)
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise DataError(f"{flag}: {file}: no ids and embeddings in it: {error}") from error
  if rows.ndim != 2 or ids.shape != rows.shape[:1]:
    raise DataError(f"{flag}: {file}: ids {ids.shape} for embeddings {rows.shape}")
  return ids, rows


def item_features(path: str, item_ids: Sequence[Any]) -> np.ndarray:
  """The rows of a table in the order of a catalogue, zeros for items that it does not know.

  Raises:
    DataError: if it knows none of them.
  """
  ids, rows = read_embeddings(path)
  row_of = {name: row for row, name in enumerate(ids.tolist())}
  index = np.array([row_of.get(str(item), -1) for item in item_ids])
  if (index < 0).all():
    raise DataError(f"--item_embeddings: {path} knows none of the log's {len(index):,} items")
  return np.where(index[:, None] >= 0, rows[index], np.float32(0))
