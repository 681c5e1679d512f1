"""One file a model family; every one is a `Model`, a pair of pure functions."""

from kdjax.models.bert import bert_axes, bert_sizes, make_bert
from kdjax.models.bert4rec import bert4rec_axes, bert4rec_sizes, make_bert4rec
from kdjax.models.gru4rec import gru4rec_axes, gru4rec_sizes, make_gru4rec
from kdjax.models.inherit import inherit_tables
from kdjax.models.linen import from_linen
from kdjax.models.mf import make_mf, mf_axes, mf_sizes
from kdjax.models.mlp import make_mlp, mlp_axes, mlp_sizes
from kdjax.models.ncf import make_ncf, ncf_axes, ncf_sizes
from kdjax.models.resnet import make_resnet, resnet_axes, resnet_sizes
from kdjax.models.sasrec import make_sasrec, sasrec_axes, sasrec_sizes
from kdjax.models.two_tower import make_two_tower, two_tower_axes, two_tower_sizes

__all__ = [
  "bert4rec_axes",
  "bert4rec_sizes",
  "bert_axes",
  "bert_sizes",
  "from_linen",
  "gru4rec_axes",
  "gru4rec_sizes",
  "inherit_tables",
  "make_bert",
  "make_bert4rec",
  "make_gru4rec",
  "make_mf",
  "make_mlp",
  "make_ncf",
  "make_resnet",
  "make_sasrec",
  "make_two_tower",
  "mf_axes",
  "mf_sizes",
  "mlp_axes",
  "mlp_sizes",
  "ncf_axes",
  "ncf_sizes",
  "resnet_axes",
  "resnet_sizes",
  "sasrec_axes",
  "sasrec_sizes",
  "two_tower_axes",
  "two_tower_sizes",
]
