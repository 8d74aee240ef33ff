"""The loss: a fused output head, forward KL to the teacher's top-k plus a tail bucket, and cross-entropy.

For one position let z be the student's logits, q = softmax(z / τ), K the teacher's top-k ids with probabilities p, and
tail the rest of the vocabulary as one outcome with p_tail = 1 − Σ_K p. Then

    KL = Σ_K p_j log(p_j / q_j) + p_tail log(p_tail / q_tail)
    ∂KL/∂z_j = (q_j − p_j) / τ                     for j in K
             = (q_tail − p_tail) · q_j / q_tail / τ  otherwise

Dropping the tail instead biases the student: renormalised top-k teaches it that nothing else can follow. Because the
gradient has this closed form it is taken while the logits of a chunk of positions exist, in the same buffer; neither
the (N, V) logits nor their gradient are ever held. The price is that the loss can be differentiated once.

Shapes: N valid positions, H hidden, W rows of the head, V ≤ W real vocabulary, K alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Head", "LossWeights", "Metrics", "fused_loss"]

_CHUNK_BYTES = 32 << 20
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Head:
    """What turns hidden states into logits: softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap).

    weight: (W, H).  bias: (W,) or None.  vocab: V, the tokens that exist; rows beyond it are padding and take part in
    nothing.
    """

    weight: Tensor
    vocab: int
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any, vocab: int) -> Head:
        """The head of a transformers causal model, with the scalings its config asks for."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(layer.weight, min(vocab, layer.weight.shape[0]), getattr(layer, "bias", None), scale, softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, H) → (N, V) in fp32 or better; only for few positions at a time."""
        logits = nn.functional.linear(
            hidden.to(self.weight.dtype) * self.scale,
            self.weight[: self.vocab],
            None if self.bias is None else self.bias[: self.vocab] * self.scale,
        )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of the two terms. The KL is taken at `temperature` and multiplied by its square (Hinton et al., 2015)."""

    kd: float = 0.9
    ce: float = 0.1
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Sums over the N positions of a call, in nats; add calls up, then divide by the positions.

    kd counts positions with a teacher distribution: `taught` of them.  mass: of the student on the teacher's top-k.
    agree: positions where both rank the same token first.  entropy: of the student over top-k and tail bucket, a
    lower bound of its entropy.
    """

    kd: float = 0.0
    ce: float = 0.0
    mass: float = 0.0
    agree: float = 0.0
    entropy: float = 0.0
    taught: float = 0.0

    @classmethod
    def from_tensor(cls, sums: Tensor) -> Metrics:
        return cls(*sums.tolist())

    def means(self, positions: int) -> dict[str, float | None]:
        """Per position; what needs a teacher is None where no position had one."""
        taught = {"kd": self.kd, "agree": self.agree, "mass": self.mass, "entropy": self.entropy}
        return {"ce": self.ce / positions} | {k: v / self.taught if self.taught else None for k, v in taught.items()}


def fused_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    normaliser: float,
    weights: LossWeights | None = None,
    teacher_ids: Tensor | None = None,
    teacher_logprobs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ over N positions of (kd · KL + ce · cross-entropy) / normaliser, differentiable in hidden, weight and bias.

    hidden: (N, H).  labels: (N,) int64 in [0, V).  normaliser: valid positions of the whole optimiser step, so that
    splitting a step into micro-batches does not change it.
    teacher_ids: (N, K) int64, -1 pads.  teacher_logprobs: (N, K), natural log, at `weights.temperature`. A row that
    is all -1, and every row without a teacher, trains on cross-entropy at full weight (kd + ce): on teacher samples
    that is the same gradient in expectation.

    Returns the scalar loss and the sums that `Metrics.from_tensor` names, detached.
    """
    weights = weights or LossWeights()
    if teacher_ids is None or teacher_logprobs is None:
        teacher_ids = labels.new_empty((len(labels), 0))
        teacher_logprobs = hidden.new_empty((len(labels), 0))
    loss, sums = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, labels, teacher_ids, teacher_logprobs, head, weights, float(normaliser)
    )
    return loss, sums


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        teacher_ids: Tensor,
        teacher_logprobs: Tensor,
        head: Head,
        weights: LossWeights,
        normaliser: float,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        exact = torch.promote_types(product, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if need_bias and bias is not None else None
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        sums = torch.zeros(6, dtype=torch.float64, device=hidden.device)
        with torch.autocast(device, enabled=False):
            kernel = weight[: head.vocab].to(product)
            rows = max(1, _CHUNK_BYTES // (exact.itemsize * head.vocab))
            for start in range(0, len(labels), rows):
                span = slice(start, start + rows)
                states = (hidden[span] * head.scale).to(product)
                logits = (states @ kernel.T).to(exact)
                if bias is not None:
                    logits += bias[: head.vocab] * head.scale
                slope = None
                if head.softcap is not None:
                    logits = logits.div_(head.softcap).tanh_()
                    slope = 1 - logits.square()
                    logits *= head.softcap
                part, part_sums = _rows_in_place(
                    logits, labels[span], teacher_ids[span], teacher_logprobs[span].to(exact), weights
                )
                loss += part
                sums += part_sums
                grad = logits.div_(normaliser)  # _rows_in_place left the gradient where the logits were
                if slope is not None:
                    grad *= slope
                if grad_bias is not None:
                    grad_bias[: head.vocab] += grad.sum(0) * head.scale
                grad = grad.to(product)
                if grad_hidden is not None:
                    grad_hidden[span] = (grad @ kernel).to(hidden.dtype) * head.scale
                if grad_weight is not None:
                    _add_outer(grad_weight[: head.vocab], grad, states)
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(sums)
        return loss / normaliser, sums

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("fused_loss can be differentiated once; call it again for another backward pass")
        (hidden, weight, bias), ctx.grads = ctx.grads, None
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden is None else hidden.mul_(grad_loss),
            None if weight is None else weight.mul_(grad_loss).to(weight_dtype),
            None if bias is None else bias.mul_(grad_loss).to(bias_dtype),
            *[None] * 6,
        )


def _rows_in_place(
    logits: Tensor, labels: Tensor, ids: Tensor, logprobs: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """Loss of some rows, summed, and the metrics; replaces `logits` (n, V) by the gradient of that sum."""
    known = ids >= 0
    taught = known.any(1)
    ce_weight = torch.where(taught, weights.ce, logits.new_full((len(labels),), weights.kd + weights.ce))
    tau = weights.temperature
    if tau == 1.0 or not bool(taught.any()):
        kd, ce, extra = _bucketed(logits, labels, ids, known, logprobs, 1.0, weights.kd, ce_weight)
    else:
        other = logits / tau
        kd, _, extra = _bucketed(other, labels, ids, known, logprobs, tau, weights.kd, torch.zeros_like(ce_weight))
        nobody = torch.zeros_like(known)
        _, ce, _ = _bucketed(logits, labels, ids, nobody, logprobs, 1.0, 0.0, ce_weight)
        logits.add_(other)
    loss = weights.kd * tau**2 * kd.sum() + (ce_weight * ce).sum()
    sums = torch.stack([(kd * tau**2).sum(), ce.sum(), *(extra * taught).sum(1), taught.sum()])
    return loss, sums.double()


def _bucketed(
    logits: Tensor,
    labels: Tensor,
    ids: Tensor,
    known: Tensor,
    logprobs: Tensor,
    tau: float,
    kd_weight: float,
    ce_weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """KL and cross-entropy per row (n,) and [mass, agree, entropy] (3, n); `logits` becomes their weighted gradient.

    The top-k entries are taken out of `logits` first, so the tail's mass is a sum of its own terms and not one minus
    something close to one, and its gradient (q_tail − p_tail) · softmax over the tail stays finite as either goes to 0.
    """
    tiny = torch.finfo(logits.dtype).tiny
    slots = ids.clamp_min(0)
    label_logit = logits.gather(1, labels[:, None])
    top = logits.gather(1, slots).masked_fill_(~known, -torch.inf)
    _scatter(logits, slots, known, torch.full_like(top, -torch.inf))

    peak = logits.amax(1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    share = logits.sub_(peak).exp_()
    total = share.sum(1, keepdim=True)
    tail_lse = total.log() + peak
    lse = torch.logaddexp(tail_lse, top.logsumexp(1, keepdim=True)) if top.shape[1] else tail_lse
    log_q, log_q_tail = top - lse, tail_lse - lse
    q, q_tail = log_q.exp(), log_q_tail.exp()

    p = torch.where(known, logprobs.exp(), 0.0)
    p = p / p.sum(1, keepdim=True).clamp_min(1.0)  # rounding may leave more than all of the mass
    p_tail = (1 - p.double().sum(1, keepdim=True)).clamp_min(0).to(p.dtype)
    p_tail = torch.where(total > 0, p_tail, 0.0)  # every token is in the top-k: there is no tail

    kd = _xlogy_ratio(p, log_q, tiny).sum(1) + _xlogy_ratio(p_tail, log_q_tail, tiny).sum(1)
    ce = (lse - label_logit).squeeze(1)
    scale = kd_weight * tau
    share.mul_((scale * (q_tail - p_tail) + ce_weight[:, None] * q_tail) / total.clamp_min(tiny))
    _scatter(share, slots, known, scale * (q - p) + ce_weight[:, None] * q)
    share.scatter_add_(1, labels[:, None], -ce_weight[:, None].to(share.dtype))

    entropy = -(_xlogy(q, log_q).sum(1) + _xlogy(q_tail, log_q_tail).sum(1))
    if top.shape[1]:
        best = torch.maximum(top.amax(1), peak.squeeze(1))
        agree = (top[:, 0] >= best).to(q.dtype)
    else:
        agree = torch.zeros_like(ce)
    return kd, ce, torch.stack([q.sum(1), agree, entropy])


def _scatter(target: Tensor, slots: Tensor, known: Tensor, values: Tensor) -> None:
    """target[n, slots[n, k]] = values[n, k] where known."""
    rows = torch.arange(len(slots), device=slots.device)[:, None].expand_as(slots)
    target[rows[known], slots[known]] = values[known].to(target.dtype)


def _xlogy_ratio(p: Tensor, log_q: Tensor, tiny: float) -> Tensor:
    """p log(p / q), 0 where p is 0."""
    return torch.where(p > 0, p * (p.clamp_min(tiny).log() - log_q), 0.0)


def _xlogy(q: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(q > 0, q * log_q, 0.0)


def _add_outer(total: Tensor, grad: Tensor, states: Tensor) -> None:
    """total (V, H) += gradᵀ (V, n) @ states (n, H), without a (V, H) temporary where the dtypes differ."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, states)
        return
    rows = max(1, _BLOCK_BYTES // (grad.dtype.itemsize * total.shape[1]))
    for start in range(0, total.shape[0], rows):
        total[start : start + rows] += grad[:, start : start + rows].T @ states
