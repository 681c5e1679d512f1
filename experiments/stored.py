"""Trained models on disk: saved, loaded, and whether one may teach another."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from experiments import families, prepared, pretrained, problems, retrieval, texts
from experiments.config import DataConfig, ModelConfig
from experiments.tasks import LANGUAGE_FAMILIES, SEARCH_FAMILIES, Task
from kdjax import flags, models, store
from kdjax.models import hub
from kdjax.models.linen import Sizes
from kdjax.types import Params

MODEL_FILE = "model.safetensors"


class WorkdirError(ValueError):
  """A workdir that cannot be used as asked; the message says what to do."""


class SavedModel(NamedTuple):
  """A model as a workdir holds it."""

  folder: pathlib.Path
  family: str
  sizes: Sizes
  params: Params
  data: DataConfig


def save_model(
  folder: pathlib.Path, family: str, sizes: Sizes, params: Params, data: DataConfig
) -> None:
  """Writes `model.safetensors`, whose header says all that is needed to build the model again."""
  metadata = {
    "family": family,
    "sizes": json.dumps(sizes),
    "data": json.dumps(dataclasses.asdict(data)),
  }
  store.save_params(folder / MODEL_FILE, params, metadata=metadata)


def load_model(folder: str | pathlib.Path, *, flag: str, on_host: bool = False) -> SavedModel:
  """Reads a finished run's model; one that tells tokens, without rows that stand for none.

  With `on_host` it is on no device, for a mesh to take its parts from.

  Raises:
    WorkdirError: naming the flag, if the folder holds none.
    StoreError: if the file is damaged.
  """
  path = pathlib.Path(folder) / MODEL_FILE
  if str(folder) and hub.is_checkpoint(folder):
    raise WorkdirError(
      f"{flag}={folder} is a Hugging Face folder, where a workdir is wanted: experiments.train "
      f"--checkpoint={folder} makes one"
    )
  if not path.exists():
    raise WorkdirError(
      f"{flag}: no {MODEL_FILE} in {str(folder)!r}; give the workdir of a finished "
      "experiments.train, distill, prune or quantize"
    )
  params, metadata = store.load_params(path, on_host=on_host)
  family, sizes = metadata["family"], json.loads(metadata["sizes"])
  if _tells_tokens(family, sizes) and (words := texts.tokenizer_in(path.parent)) is not None:
    params, sizes = models.cut_vocabulary(params, sizes, words.get_vocab_size())
  return SavedModel(
    pathlib.Path(folder),
    family,
    sizes,
    params,
    flags.from_dict(DataConfig, json.loads(metadata["data"])),
  )


def fingerprint(model: SavedModel) -> str:
  """Of its files: of params, for a run of family, sizes and where it came from too."""
  digest = hashlib.blake2b()
  for path in hub.weights_in(model.folder):
    with path.open("rb") as file:
      hashlib.file_digest(file, lambda: digest)
  return digest.hexdigest()[:32]


def load_teacher(
  folder: str | pathlib.Path, data: DataConfig, family: str, *, flag: str, on_host: bool = False
) -> SavedModel:
  """Reads a finished run's model, or a Hugging Face folder as what a task wants of a teacher.

  For search models that is an encoder of sentences, or a cross-encoder where the folder has one
  label; for classifiers of texts a classifier, for masked ones a model of tokens, for decoders a
  decoder. It reads tokens by the tokenizer of its own folder.

  Args:
    folder: a workdir, or a checkpoint folder.
    data: of its students.
    family: of its students.
    flag: that gave the folder.
    on_host: as of `load_model`; checkpoint folders are read there always.

  Raises:
    WorkdirError, StoreError: as `load_model`. HubError: if a checkpoint folder is damaged.
    DataError: if it has no tokenizer.json. ValueError: naming the flag, if its model does not fit
      the task.
  """
  if not str(folder) or not hub.is_checkpoint(folder):
    return load_model(folder, flag=flag, on_host=on_host)
  own = pretrained.family_of(folder, family, flag=flag)
  data = dataclasses.replace(data, tokenizer=str(folder))
  model = ModelConfig(model=own, checkpoint=str(folder))
  task = problems.make_task(data, own)
  classes = problems.label_names(data, own)
  pretrained.check_head(folder, own, task.sizes, classes, flag=flag)
  sizes = families.model_sizes(model, task)
  text = retrieval.as_text(model) if own in SEARCH_FAMILIES else model
  params, said = pretrained.params_of(str(folder), text.model, sizes, classes)
  print(f"{flag}={folder} as a {own}{'; ' * bool(said)}{said}", flush=True)
  return SavedModel(pathlib.Path(folder), own, sizes, params, data)


def _tells_tokens(family: str, sizes: Sizes) -> bool:
  """Whether the logits of a model are over the tokens of its tokenizer."""
  return family in LANGUAGE_FAMILIES or (family == "bert" and sizes.get("head") == "tokens")


def check_teacher(
  teacher: SavedModel, task: Task, data: DataConfig, *, own_tokens: bool = False
) -> None:
  """Refuses a teacher of another task, catalogue or split, and of other tokens unless `own_tokens`.

  Raises:
    ValueError: saying which.
  """
  other = problems.make_task(
    dataclasses.replace(data, objective=teacher.data.objective), teacher.family
  )
  if other.name != task.name:
    raise ValueError(
      f"--teacher={teacher.folder} is a {teacher.family} ({other.name} task), the student learns "
      f"the {task.name} task; both must be of one task"
    )
  if (words := problems.tokenizer_of(data, teacher.family)) is not None and not own_tokens:
    mend = ""
    if teacher.family in LANGUAGE_FAMILIES:
      mend = ", or --distill_losses=universal_logit:1 alone, which needs no common tokens (ULD)"
    texts.check_tokenizer(data, teacher.folder, words, mend=mend)
  same = ["num_items", "num_users", "cardinalities", "num_classes", "num_labels"]
  if _tells_tokens(teacher.family, teacher.sizes) and not own_tokens:
    same.append("vocab_size")
  for name in same:
    theirs, ours = teacher.sizes.get(name), task.sizes.get(name)
    if name in teacher.sizes and name in task.sizes and _plain(theirs) != _plain(ours):
      raise ValueError(
        f"--teacher={teacher.folder} was trained on other data: {name} is {theirs}, here {ours}"
      )
  check_split(teacher, data, flag="--teacher")


def check_split(model: SavedModel, data: DataConfig, *, flag: str) -> None:
  """Refuses a model of another split: it has seen what the student is tested on.

  Raises:
    ValueError: naming `flag`, and the flags that differ.
  """
  if changed := _changes(prepared.split_of(model.data), prepared.split_of(data)):
    raise ValueError(f"{flag}={model.folder} was trained on another split: {changed}")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
  """Which flags differ, and how."""
  return ", ".join(
    f"--{name} was {before[name]!r}, is {now[name]!r}" for name in now if now[name] != before[name]
  )


def other_split(before: DataConfig, now: DataConfig) -> str:
  """Which flags split the same data in another way; "" for none, and for other data."""
  first, second = (
    {n: v for n, v in prepared.split_of(data).items() if n not in ("objective", "label_column")}
    for data in (before, now)
  )
  return _changes(first, second) if first["dataset"] == second["dataset"] else ""


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value
