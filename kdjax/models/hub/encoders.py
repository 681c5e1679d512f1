"""BERT and its kin, as Hugging Face calls them."""

from kdjax.models.hub.architecture import Architecture
from kdjax.models.hub.folders import Config
from kdjax.models.linen import Sizes

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
  if config.get("type_vocab_size", 1) < 1:
    raise ValueError("type_vocab_size=0: there is a token type at least")
  return {"num_labels": config.get("num_labels") or len(config.get("id2label") or range(2))}


def _config(sizes: Sizes) -> Config:
  """Names for the labels, and the token of padding, from which RoBERTa counts positions."""
  names = {str(i): f"LABEL_{i}" for i in range(sizes["num_labels"])}
  labels = {name: int(i) for i, name in names.items()}
  pad = max(sizes["position_offset"] - 1, 0)
  count = {"num_labels": len(names)}
  return {"id2label": names, "label2id": labels, "pad_token_id": pad} | count


_BERT = Architecture(
  family="bert",
  prefix="bert.",
  fields=_BERT_FIELDS,
  defaults={},
  fixed={"head_activation": "tanh"},
  sizes=_labels,
  config=_config,
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
  skipped=(r"{prefix}embeddings\.position_ids", r"{prefix}pooler\.", r"cls\.", r"classifier\."),
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
  skipped=(
    r"{prefix}embeddings\.position_ids",
    r"{prefix}pooler\.",
    r"lm_head\.",
    r"classifier\.",
  ),
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
  defaults={},
  fixed={"head_activation": "relu", "num_types": 0, "epsilon": 1e-12},
  sizes=_labels,
  config=_config,
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
  skipped=("vocab_", r"pre_classifier\.", r"classifier\."),
)


ENCODERS: dict[str, Architecture] = {
  "bert": _BERT,
  "distilbert": _DISTILBERT,
  "roberta": _ROBERTA,
  "xlm-roberta": _ROBERTA._replace(
    classes={head: f"XLM{name}" for head, name in _ROBERTA.classes.items()}
  ),
}
