"""One file a model family; every one is a `Model`, a pair of pure functions."""

from kdjax.models.bert import bert_axes, bert_sizes, make_bert
from kdjax.models.bert4rec import bert4rec_axes, bert4rec_sizes, make_bert4rec
from kdjax.models.bi_encoder import bi_encoder_axes, bi_encoder_sizes, make_bi_encoder
from kdjax.models.catalogs import move_items
from kdjax.models.cross_encoder import (
  cross_encoder_axes,
  cross_encoder_sizes,
  make_cross_encoder,
  pair_rows,
)
from kdjax.models.decoder import decoder_axes, decoder_sizes, make_cached, make_decoder
from kdjax.models.generate import append, generate, sample_tokens
from kdjax.models.gru4rec import gru4rec_axes, gru4rec_sizes, make_gru4rec
from kdjax.models.heads import HEADS, apply_heads, head_axes, split_heads, with_heads
from kdjax.models.inherit import inherit_leaves, inherit_tables
from kdjax.models.linen import from_linen
from kdjax.models.mf import make_mf, mf_axes, mf_sizes
from kdjax.models.mlp import make_mlp, mlp_axes, mlp_sizes
from kdjax.models.ncf import make_ncf, ncf_axes, ncf_sizes
from kdjax.models.resnet import make_resnet, resnet_axes, resnet_sizes
from kdjax.models.sasrec import fold_item_features, make_sasrec, sasrec_axes, sasrec_sizes
from kdjax.models.speech_gru import make_speech_gru, speech_gru_axes, speech_gru_sizes
from kdjax.models.static import distill_table, make_static, static_axes, static_sizes
from kdjax.models.text_cnn import make_text_cnn, text_cnn_axes, text_cnn_sizes
from kdjax.models.text_gru import make_text_gru, text_gru_axes, text_gru_sizes
from kdjax.models.two_tower import make_two_tower, two_tower_axes, two_tower_sizes
from kdjax.models.vocabulary import cut_vocabulary

__all__ = [
  "HEADS",
  "append",
  "apply_heads",
  "bert4rec_axes",
  "bert4rec_sizes",
  "bert_axes",
  "bert_sizes",
  "bi_encoder_axes",
  "bi_encoder_sizes",
  "cross_encoder_axes",
  "cross_encoder_sizes",
  "cut_vocabulary",
  "decoder_axes",
  "decoder_sizes",
  "distill_table",
  "fold_item_features",
  "from_linen",
  "generate",
  "gru4rec_axes",
  "gru4rec_sizes",
  "head_axes",
  "inherit_leaves",
  "inherit_tables",
  "make_bert",
  "make_bert4rec",
  "make_bi_encoder",
  "make_cached",
  "make_cross_encoder",
  "make_decoder",
  "make_gru4rec",
  "make_mf",
  "make_mlp",
  "make_ncf",
  "make_resnet",
  "make_sasrec",
  "make_speech_gru",
  "make_static",
  "make_text_cnn",
  "make_text_gru",
  "make_two_tower",
  "mf_axes",
  "mf_sizes",
  "mlp_axes",
  "mlp_sizes",
  "move_items",
  "ncf_axes",
  "ncf_sizes",
  "pair_rows",
  "resnet_axes",
  "resnet_sizes",
  "sample_tokens",
  "sasrec_axes",
  "sasrec_sizes",
  "speech_gru_axes",
  "speech_gru_sizes",
  "split_heads",
  "static_axes",
  "static_sizes",
  "text_cnn_axes",
  "text_cnn_sizes",
  "text_gru_axes",
  "text_gru_sizes",
  "two_tower_axes",
  "two_tower_sizes",
  "with_heads",
]
