"""Hugging Face checkpoint folders as a task needs them: sizes, params, and what they can teach."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import meshes
from experiments.config import CheckpointDtype, Family
from experiments.tasks import LANGUAGE_FAMILIES, SEARCH_FAMILIES, TEXT_FAMILIES
from kdjax import models
from kdjax.data.tokens import load_tokenizer
from kdjax.models import hub
from kdjax.models.linen import Sizes
from kdjax.train import placement
from kdjax.types import Params


def family_of(folder: str | pathlib.Path, student: str, *, flag: str) -> Family:
  """Which family a folder's model is of as a teacher of a student's.

  Raises:
    ValueError: naming `flag`, if it cannot teach such a student.
  """
  found = hub.read_config(folder, head="pool")
  if student in LANGUAGE_FAMILIES and found.family == "decoder":
    return "decoder"
  if student in TEXT_FAMILIES and found.family == "bert":
    return "bert"
  if student in SEARCH_FAMILIES and found.family == "bert":
    if "labels" not in hub.heads_in(folder):
      return "bi_encoder"
    if (count := _count_labels(folder)) == 1:
      return "cross_encoder"
    raise ValueError(
      f"{flag}={folder} tells {count} labels; a teacher of search encodes sentences, or has one "
      "label, the score of a pair"
    )
  mend = "bert for text and search models, a decoder for decoders"
  if student not in (*LANGUAGE_FAMILIES, *TEXT_FAMILIES, *SEARCH_FAMILIES):
    mend = "recommenders learn from experiments.embed and experiments.rank_titles instead"
  raise ValueError(
    f"{flag}={folder} is a {found.model_type} and cannot teach --model={student}: {mend}"
  )


def check_head(
  folder: str | pathlib.Path, family: str, sizes: Sizes, classes: Sequence[str], *, flag: str
) -> None:
  """Refuses a teacher whose folder lacks what the task asks it.

  Raises:
    ValueError: naming `flag` and the mend.
  """
  head = sizes.get("head", "pool")
  if family == "decoder":
    return
  mend = f"train it first: experiments.train --checkpoint={folder}, and give that workdir"
  if head not in hub.heads_in(folder):
    raise ValueError(f"{flag}={folder} has no weights for the head {head}; {mend}")
  if head == "labels" and (count := _count_labels(folder)) != sizes["num_labels"]:
    raise ValueError(
      f"{flag}={folder} tells {count} labels, the data have {sizes['num_labels']}"
      f"{' (' + ', '.join(classes) + ')' if classes else ''}; {mend}"
    )


def _count_labels(folder: str | pathlib.Path) -> int:
  return hub.read_config(folder, head="labels").sizes["num_labels"]


def sizes_of(folder: str, family: str, sizes: Sizes) -> Sizes:
  """The arguments of `make_bert` or `make_decoder`: those of a folder, with the head of a task.

  Args:
    folder: a checkpoint folder.
    family: "bert" or "decoder".
    sizes: of the task.

  Raises:
    ValueError: naming the folder, and the flag that does not fit it.
  """
  found = hub.read_config(folder, head="pool")
  if found.family != family:
    raise ValueError(f"--checkpoint={folder} is a {found.model_type}, no {family}")
  found = hub.read_config(folder, head=_head(family, sizes))
  if found.sizes["vocab_size"] < sizes["vocab_size"]:
    raise ValueError(
      f"{folder} knows {found.sizes['vocab_size']:,} tokens, but --tokenizer gives "
      f"{sizes['vocab_size']:,}; use the checkpoint's own"
    )
  longest = found.sizes["max_length"] - found.sizes.get("position_offset", 0)
  if sizes["max_length"] > longest:
    raise ValueError(
      f"--max_length={sizes['max_length']} is more than the {longest} positions of {folder}"
    )
  embeds = sizes.get("head") == "pool"
  own = {k: v for k, v in found.sizes.items() if embeds or k not in ("pooling", "normalize")}
  own |= {k: sizes[k] for k in ("head", "num_labels", "dropout") if k in sizes}
  # Where tokens are told: tables are often longer than the vocabulary, by rows that mean nothing.
  return own | ({"vocab_size": sizes["vocab_size"]} if own["head"] == "tokens" else {})


def params_of(
  folder: str,
  family: str,
  sizes: Sizes,
  classes: Sequence[str] = (),
  *,
  dtype: CheckpointDtype = "float32",
  mesh: Mesh | None = None,
) -> tuple[Params, str]:
  """What fits of a folder's params, on the host, or read by every device of a mesh in parts.

  The body, and of the head what is there: the classifier where it tells as many labels, in the
  order of `classes` where it knows them by the same names.

  Args:
    folder: a checkpoint folder.
    family: "bert" or "decoder".
    sizes: those of `sizes_of`.
    classes: names of the labels, if there are any.
    dtype: what its numbers become.
    mesh: as for `load`.

  Returns:
    The params, and what a person should know of them: what was left out, and how labels go.
  """
  head = _head(family, sizes)
  # An encoder's head may be missing, in part or whole.
  partial = family == "bert"
  found = _read(folder, head, dtype, mesh, partial=partial, on_host=mesh is None)
  params, left, said = dict(found.params), list(found.left), []
  if head == "tokens":
    params, _ = models.cut_vocabulary(params, found.sizes, sizes["vocab_size"])
  if head == "labels" and "classifier" in params:
    theirs = found.sizes["num_labels"]
    if theirs != sizes["num_labels"]:
      del params["classifier"]
      left.append(f"classifier ({theirs} labels, here {sizes['num_labels']})")
    elif classes:
      order, how = _label_order(found.config, classes)
      params["classifier"] = {part: x[..., order] for part, x in params["classifier"].items()}
      said.append(how)
  if left:
    said.insert(0, f"left out: {', '.join(left)}")
  return params, "; ".join(said)


def _label_order(config: dict[str, Any], classes: Sequence[str]) -> tuple[np.ndarray, str]:
  """Where each class stands among a folder's labels, and how that was found."""
  names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
  places = {name.lower(): number for number, name in names.items()}
  if len(places) == len(classes) and set(places) == {name.lower() for name in classes}:
    return np.array([places[name.lower()] for name in classes]), "labels by name"
  pairs = ", ".join(f"{names.get(i, i)} is {name}" for i, name in enumerate(classes))
  return np.arange(len(classes)), f"labels by number: {pairs}"


def _head(family: str, sizes: Sizes) -> str:
  return "tokens" if family == "decoder" else sizes.get("head", "pool")


def load(
  folder: str | pathlib.Path,
  *,
  head: str,
  tokenizer: str | pathlib.Path | int,
  dtype: CheckpointDtype = "float32",
  mesh: Mesh | None = None,
) -> hub.Checkpoint:
  """A Hugging Face folder, without rows of its tables that stand for no token.

  On a mesh every device reads its own part of the files: no array is whole anywhere.

  Args:
    folder: of the checkpoint.
    head: as for `kdjax.models.hub.load`.
    tokenizer: a `tokenizer.json` or a folder with one, or how many tokens there are.
    dtype: what its numbers become.
    mesh: where its arrays lie, by `kdjax.train.MODEL_RULES`; None for the default device.

  Raises:
    ValueError: naming the flag, if the model knows fewer tokens.
  """
  num_tokens = tokenizer
  if not isinstance(num_tokens, int):
    num_tokens = int(load_tokenizer(num_tokens).get_vocab_size())
  found = _read(folder, head, dtype, mesh)
  if found.sizes["vocab_size"] < num_tokens:
    raise ValueError(
      f"--checkpoint={folder} knows {found.sizes['vocab_size']:,} tokens, but --tokenizer gives "
      f"{num_tokens:,}; use the checkpoint's own"
    )
  params, sizes = models.cut_vocabulary(found.params, found.sizes, num_tokens)
  return found._replace(params=meshes.put(params, mesh), sizes=sizes)  # Other shapes lie otherwise.


def dtype_of(params: Params) -> str:
  """What a pretrained model computes in: bfloat16 where its tables are, else float32."""
  stored = params["token_embedding"]["embedding"].dtype
  return "bfloat16" if stored == jnp.bfloat16 else "float32"


def _read(
  folder: str | pathlib.Path,
  head: str,
  dtype: CheckpointDtype,
  mesh: Mesh | None,
  **options: bool,
) -> hub.Checkpoint:
  place = None if mesh is None else functools.partial(placement.leaf_sharding, mesh=mesh)
  kept = None if dtype == "as_stored" else jnp.dtype(dtype)
  return hub.load(folder, head=head, dtype=kept, sharding=place, **options)
