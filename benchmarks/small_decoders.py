"""Tiny decoders that were really trained, from initialisations of their own: strangers who learned the same."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["trained"]


def trained(
    models: int, seed: int, steps: int = 60, h: int = 24, d: int = 12, vocab: int = 20
) -> list[dict[str, Tensor]]:
    """Many one-layer decoders with a gated MLP, trained side by side on the same data from inits of their own."""
    torch.manual_seed(seed)
    embed = torch.randn(models, vocab, d).mul_(0.3).requires_grad_()
    gate, up = (torch.randn(models, h, d).mul_(0.3).requires_grad_() for _ in range(2))
    down = torch.randn(models, d, h).mul_(0.3).requires_grad_()
    optimiser = torch.optim.AdamW([embed, gate, up, down], lr=0.03, weight_decay=0.01)
    data = torch.Generator().manual_seed(0)
    # a skewed bigram table: all models learn the same, strongly
    table = torch.softmax(3 * torch.randn(vocab, vocab, generator=data), -1)
    for _ in range(steps):
        now = torch.randint(0, vocab, (32,), generator=data)
        following = torch.multinomial(table[now], 1, generator=data)[:, 0]
        x = embed[:, now]
        hidden = torch.nn.functional.silu(x @ gate.mT) * (x @ up.mT)
        logits = (x + hidden @ down.mT) @ embed.mT
        loss = -logits.log_softmax(-1)[:, torch.arange(32), following].mean(-1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    g, u = (f"model.layers.0.mlp.{which}_proj.weight" for which in ("gate", "up"))
    return [
        {"model.embed_tokens.weight": e, g: a, u: b}
        for e, a, b in zip(embed.detach(), gate.detach(), up.detach(), strict=True)
    ]
