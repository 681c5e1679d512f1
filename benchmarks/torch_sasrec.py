"""SASRec in plain PyTorch, as most published code writes it: what ours is raced against.

One padded row a user, `nn.MultiheadAttention` blocks with a causal mask, logits for the whole
catalogue by the transposed embedding table. Needs the extra `bench`.
"""

import os
from typing import Any

import numpy as np
import torch
from torch import nn

from kdjax.data.interactions import Sequences

IGNORED = -100  # The label of padding, which `cross_entropy` leaves out.


class Block(nn.Module):
  """Attention and a feed-forward layer, normalised before."""

  def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float):
    super().__init__()
    self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
    self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
    self.up, self.down = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
    self.drop = nn.Dropout(dropout)

  def forward(self, x: Any, mask: Any) -> Any:
    """`[B, L, d]` to the same."""
    y = self.norm_1(x)
    y, _ = self.attention(y, y, y, attn_mask=mask, need_weights=False, is_causal=True)
    x = x + self.drop(y)
    y = self.drop(torch.relu(self.up(self.norm_2(x))))
    return x + self.drop(self.down(y))


class SASRec(nn.Module):
  """Histories `[B, L]` to hidden states `[B, L, d]`; item `num_items` is padding."""

  def __init__(
    self,
    num_items: int,
    *,
    length: int,
    dim: int,
    layers: int = 2,
    heads: int = 1,
    mlp_dim: int | None = None,
    dropout: float = 0.2,
  ):
    super().__init__()
    self.num_items = num_items
    self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
    self.positions = nn.Embedding(length, dim)
    self.blocks = nn.ModuleList(
      Block(dim, heads, mlp_dim or 4 * dim, dropout) for _ in range(layers)
    )
    self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)
    nn.init.normal_(self.items.weight, std=0.02)

  def forward(self, items: Any) -> Any:
    """Hidden states of every position."""
    length = items.shape[1]
    x = self.items(items) * self.items.embedding_dim**0.5
    x = self.drop(x + self.positions(torch.arange(length)))
    mask = nn.Transformer.generate_square_subsequent_mask(length)
    for block in self.blocks:
      x = block(x, mask)
    return self.norm(x)

  def logits(self, hidden: Any) -> Any:
    """Scores of the whole catalogue, `[..., V]`."""
    return hidden @ self.items.weight[: self.num_items].T


def make(num_items: int, **sizes: Any) -> SASRec:
  """The model from seed 0, with a thread for each processor that this process may use."""
  torch.manual_seed(0)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  return SASRec(num_items, **sizes)


def rows(train: Sequences, users: np.ndarray, *, length: int, padding: int) -> tuple[Any, Any]:
  """Items and next items of users' last events, a padded row each: two int64 `[B, L]` tensors."""
  items = np.full((len(users), length), padding)
  labels = np.full((len(users), length), IGNORED)
  for row, user in enumerate(users):
    history = train.row(user)[-(length + 1) :]
    items[row, : len(history) - 1], labels[row, : len(history) - 1] = history[:-1], history[1:]
  return torch.from_numpy(items), torch.from_numpy(labels)
