"""What the models of Hugging Face are called: their configs and tensors, by `model_type`."""

import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.models.folders import CONFIG, Config, HubError
from kdjax.models.linen import Sizes, collapse
from kdjax.types import Path


class Architecture(NamedTuple):
  """How one `model_type` calls what a family of kdjax has.

  Attributes:
    family: of kdjax.
    prefix: of the names of the body where a head stands beside it, such as "bert.".
    fields: sizes by their key in `config.json`, but for those that `sizes` finds.
    fixed: sizes that follow from the type.
    sizes: further sizes, from the config.
    body: our modules by their names, `{i}` for the number of a block.
    heads: for every head its modules and whether their names take the prefix.
    classes: the names under `architectures`, by head.
    tied: further names of tensors, which must be equal to those they repeat.
    skipped: what names of other heads and of buffers begin with.
  """

  family: str
  prefix: str
  fields: dict[str, str]
  fixed: Sizes
  sizes: Callable[[Config], Sizes]
  body: dict[str, str]
  heads: dict[str, dict[str, str]]
  classes: dict[str, str]
  tied: dict[str, str]
  skipped: tuple[str, ...]


ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
  "tanh": "tanh",
}


_LAYER = "encoder.layer.{i}."


_BERT_BODY = {
  "token_embedding": "embeddings.word_embeddings",
  "position_embedding": "embeddings.position_embeddings",
  "type_embedding": "embeddings.token_type_embeddings",
  "embedding_norm": "embeddings.LayerNorm",
  "block_{i}/attention/query": _LAYER + "attention.self.query",
  "block_{i}/attention/key": _LAYER + "attention.self.key",
  "block_{i}/attention/value": _LAYER + "attention.self.value",
  "block_{i}/attention/out": _LAYER + "attention.output.dense",
  "block_{i}/norm_1": _LAYER + "attention.output.LayerNorm",
  "block_{i}/up": _LAYER + "intermediate.dense",
  "block_{i}/down": _LAYER + "output.dense",
  "block_{i}/norm_2": _LAYER + "output.LayerNorm",
}


_BERT_FIELDS = {
  "vocab_size": "vocab_size",
  "max_length": "max_position_embeddings",
  "dim": "hidden_size",
  "num_layers": "num_hidden_layers",
  "num_heads": "num_attention_heads",
  "mlp_dim": "intermediate_size",
  "num_types": "type_vocab_size",
  "activation": "hidden_act",
  "epsilon": "layer_norm_eps",
  "dropout": "hidden_dropout_prob",
}


def _labels(config: Config) -> Sizes:
  """How many labels: as many as are named, two where the config is silent."""
  return {"num_labels": config.get("num_labels") or len(config.get("id2label") or range(2))}


_BERT = Architecture(
  family="bert",
  prefix="bert.",
  fields=_BERT_FIELDS,
  fixed={"head_activation": "tanh"},
  sizes=_labels,
  body=_BERT_BODY,
  heads={
    "pool": {},
    "tokens": {
      "head": "cls.predictions.transform.dense",
      "head_norm": "cls.predictions.transform.LayerNorm",
      "token_bias": "cls.predictions.bias",
    },
    "labels": {"head": "{prefix}pooler.dense", "classifier": "classifier"},
  },
  classes={
    "pool": "BertModel",
    "tokens": "BertForMaskedLM",
    "labels": "BertForSequenceClassification",
  },
  tied={
    "cls.predictions.decoder.weight": "token_embedding/embedding",
    "cls.predictions.decoder.bias": "token_bias",
  },
  skipped=("{prefix}embeddings.position_ids", "{prefix}pooler.", "cls.", "classifier."),
)


_ROBERTA = _BERT._replace(
  prefix="roberta.",
  sizes=lambda config: _labels(config) | {"position_offset": config["pad_token_id"] + 1},
  heads={
    "pool": {},
    "tokens": {
      "head": "lm_head.dense",
      "head_norm": "lm_head.layer_norm",
      "token_bias": "lm_head.bias",
    },
    "labels": {"head": "classifier.dense", "classifier": "classifier.out_proj"},
  },
  classes={
    "pool": "RobertaModel",
    "tokens": "RobertaForMaskedLM",
    "labels": "RobertaForSequenceClassification",
  },
  tied={
    "lm_head.decoder.weight": "token_embedding/embedding",
    "lm_head.decoder.bias": "token_bias",
  },
  skipped=("{prefix}embeddings.position_ids", "{prefix}pooler.", "lm_head.", "classifier."),
)


_DISTIL_LAYER = "transformer.layer.{i}."


_DISTILBERT = Architecture(
  family="bert",
  prefix="distilbert.",
  fields={
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "dim": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "mlp_dim": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
  },
  fixed={"head_activation": "relu", "num_types": 0, "epsilon": 1e-12},
  sizes=_labels,
  body={
    "token_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "block_{i}/attention/query": _DISTIL_LAYER + "attention.q_lin",
    "block_{i}/attention/key": _DISTIL_LAYER + "attention.k_lin",
    "block_{i}/attention/value": _DISTIL_LAYER + "attention.v_lin",
    "block_{i}/attention/out": _DISTIL_LAYER + "attention.out_lin",
    "block_{i}/norm_1": _DISTIL_LAYER + "sa_layer_norm",
    "block_{i}/up": _DISTIL_LAYER + "ffn.lin1",
    "block_{i}/down": _DISTIL_LAYER + "ffn.lin2",
    "block_{i}/norm_2": _DISTIL_LAYER + "output_layer_norm",
  },
  heads={
    "pool": {},
    "tokens": {
      "head": "vocab_transform",
      "head_norm": "vocab_layer_norm",
      "token_bias": "vocab_projector.bias",
    },
    "labels": {"head": "pre_classifier", "classifier": "classifier"},
  },
  classes={
    "pool": "DistilBertModel",
    "tokens": "DistilBertForMaskedLM",
    "labels": "DistilBertForSequenceClassification",
  },
  tied={"vocab_projector.weight": "token_embedding/embedding"},
  skipped=("vocab_", "pre_classifier.", "classifier."),
)


ARCHITECTURES: dict[str, Architecture] = {
  "bert": _BERT,
  "distilbert": _DISTILBERT,
  "roberta": _ROBERTA,
  "xlm-roberta": _ROBERTA._replace(
    classes={head: f"XLM{name}" for head, name in _ROBERTA.classes.items()}
  ),
}


def find(model_type: Any, folder: pathlib.Path) -> Architecture:
  """The architecture of that type; else a `HubError` that names the folder and all types."""
  if model_type not in ARCHITECTURES:
    raise HubError(f"{folder}: model_type {model_type!r}: there are {', '.join(ARCHITECTURES)}")
  return ARCHITECTURES[model_type]


def head_of(config: Config, architecture: Architecture, folder: pathlib.Path) -> str:
  """The head that the config names; "pool" where it names none."""
  named = (config.get("architectures") or [architecture.classes["pool"]])[0]
  for head, name in architecture.classes.items():
    if name == named:
      return head
  raise HubError(
    f"{folder / CONFIG}: {named} has a head that is not known; head= one of "
    f"{', '.join(architecture.heads)} reads that, or the body alone"
  )


def sizes_of_config(
  config: Config, architecture: Architecture, head: str, folder: pathlib.Path
) -> Sizes:
  """The arguments of the family's `make_`, from the config."""
  for key, plain in (
    ("position_embedding_type", "absolute"),
    ("is_decoder", False),
    ("add_cross_attention", False),
  ):
    if config.get(key, plain) != plain:
      raise HubError(f"{folder / CONFIG}: {key}={config[key]!r} is not known, only {plain!r}")
  try:
    sizes: Sizes = {ours: config[theirs] for ours, theirs in architecture.fields.items()}
    sizes |= architecture.fixed | architecture.sizes(config) | {"head": head}
  except KeyError as error:
    raise HubError(f"{folder / CONFIG}: {error} is missing") from error
  if sizes["activation"] not in ACTIVATIONS:
    raise HubError(
      f"{folder / CONFIG}: activation {sizes['activation']!r}: there are {', '.join(ACTIVATIONS)}"
    )
  return sizes | {"activation": ACTIVATIONS[sizes["activation"]]}


def config_of(model_type: str, config: Config, architecture: Architecture, sizes: Sizes) -> Config:
  """A config with what the sizes say in it, the rest as it was."""
  new = {theirs: plain(sizes[ours]) for ours, theirs in architecture.fields.items()}
  theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
  new[architecture.fields["activation"]] = theirs[sizes["activation"]]
  config = {**config, **new, "model_type": model_type}
  config["architectures"] = [architecture.classes[sizes["head"]]]
  if "pad_token_id" not in config:
    config["pad_token_id"] = max(sizes["position_offset"] - 1, 0)
  if sizes["num_labels"] != _labels(config)["num_labels"]:
    names = {str(i): f"LABEL_{i}" for i in range(sizes["num_labels"])}
    config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    config.pop("num_labels", None)
  return config


def plain(size: Any) -> Any:
  """One number for one of every block, where they agree."""
  return collapse(size) if isinstance(size, (tuple, list)) else size


def name_of(path: Path, architecture: Architecture, head: str, prefix: str) -> str:
  """What a leaf is called in the file."""
  of_head = architecture.heads[head]
  if path[0] in of_head:
    name = of_head[path[0]].format(prefix=prefix)
  else:
    block = re.fullmatch(r"block_(\d+)", path[0])
    key = "/".join(("block_{i}" if block else path[0], *path[1:-1]))
    if key not in architecture.body:
      raise HubError(f"{'/'.join(path)} has no place in a model of this type")
    name = prefix + architecture.body[key].format(i=block and block[1])
  if len(path) == 1:
    return name
  return name + (".bias" if path[-1] == "bias" else ".weight")
