"""The fused loss against a dense one that autograd differentiates, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spiritsafe.train import Head, LossWeights, Metrics, fused_loss
from spiritsafe.train import _loss as module


def dense_loss(
    hidden: Tensor, head: Head, labels: Tensor, normaliser: float, weights: LossWeights, ids: Tensor, logprobs: Tensor
) -> Tensor:
    """The definition, written out over the whole vocabulary."""
    logits = hidden @ head.weight[: head.vocab].T
    if head.bias is not None:
        logits = logits + head.bias[: head.vocab]
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    total = torch.zeros((), dtype=hidden.dtype)
    for n in range(len(labels)):
        known = ids[n] >= 0
        ce = -torch.log_softmax(logits[n], 0)[labels[n]]
        if not known.any():
            total = total + (weights.kd + weights.ce) * ce
            continue
        log_q = torch.log_softmax(logits[n] / weights.temperature, 0)
        inside = torch.zeros(head.vocab, dtype=torch.bool)
        inside[ids[n][known]] = True
        p, tail = logprobs[n][known].exp(), 1 - logprobs[n][known].exp().sum()
        kl = (p * (p.log() - log_q[ids[n][known]])).sum()
        if tail > 0 and not inside.all():
            kl = kl + tail * (tail.log() - torch.logsumexp(log_q[~inside], 0))
        total = total + weights.kd * weights.temperature**2 * kl + weights.ce * ce
    return total / normaliser


def problem(
    n: int = 7,
    hidden: int = 5,
    vocab: int = 23,
    pad: int = 0,
    k: int = 4,
    seed: int = 0,
    bias: bool = False,
    spread: float = 2.0,
) -> tuple[Tensor, Head, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    weight = (draw(vocab + pad, hidden) * spread).requires_grad_()
    states = draw(n, hidden).requires_grad_()
    head = Head(weight, vocab, draw(vocab + pad).requires_grad_() if bias else None)
    labels = torch.randint(vocab, (n,), generator=g)
    logprobs, ids = torch.log_softmax(draw(n, vocab) * 2, 1).topk(k, 1)
    return states, head, labels, ids, logprobs


def gradients(loss: Tensor, states: Tensor, head: Head) -> list[Tensor]:
    leaves = [states, head.weight] + ([] if head.bias is None else [head.bias])
    return list(torch.autograd.grad(loss, leaves))


def assert_same(states: Tensor, head: Head, *args: Any) -> None:
    labels, normaliser, weights, ids, logprobs = args
    ours, _ = fused_loss(states, head, labels, normaliser, weights, ids, logprobs)
    theirs = dense_loss(states, head, labels, normaliser, weights, ids, logprobs)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
    for a, b in zip(gradients(ours, states, head), gradients(theirs, states, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two or three rows, so that every test crosses their edges."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 3 * 8 * 23)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("scaling", [{}, {"scale": 0.3}, {"softcap": 4.0}, {"scale": 1.7, "softcap": 3.0}])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_match_the_dense_definition(
    temperature: float, scaling: dict[str, float], bias: bool
) -> None:
    states, head, labels, ids, logprobs = problem(bias=bias)
    weights = LossWeights(0.9, 0.1, temperature)
    assert_same(states, replace(head, **scaling), labels, 11.0, weights, ids, logprobs)


def test_padded_rows_of_the_head_take_no_part() -> None:
    states, head, labels, ids, logprobs = problem(pad=5)
    loss, _ = fused_loss(states, head, labels, 7.0, LossWeights(), ids, logprobs)
    _, grad = gradients(loss, states, head)
    assert grad.shape == head.weight.shape
    assert torch.count_nonzero(grad[head.vocab :]) == 0
    assert torch.count_nonzero(grad[: head.vocab]) > 0
    short = Head(head.weight[: head.vocab].detach().clone().requires_grad_(), head.vocab)
    torch.testing.assert_close(fused_loss(states, short, labels, 7.0, LossWeights(), ids, logprobs)[0], loss)


def test_without_a_teacher_it_is_cross_entropy() -> None:
    states, head, labels, _, _ = problem()
    loss, sums = fused_loss(states, head, labels, len(labels))
    expected = torch.nn.functional.cross_entropy(states @ head.weight.T, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for a, b in zip(gradients(loss, states, head), gradients(expected, states, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    metrics = Metrics.from_tensor(sums)
    assert metrics.taught == 0 and metrics.kd == 0
    assert metrics.ce / len(labels) == pytest.approx(expected.item())


def test_short_rows_and_rows_without_a_teacher() -> None:
    states, head, labels, ids, logprobs = problem()
    ids[0, 2:], logprobs[0, 2:] = -1, -torch.inf
    ids[3], logprobs[3] = -1, -torch.inf
    assert_same(states, head, labels, 7.0, LossWeights(), ids, logprobs)
    _, sums = fused_loss(states, head, labels, 7.0, LossWeights(), ids, logprobs)
    assert Metrics.from_tensor(sums).taught == len(labels) - 1


def test_teacher_without_a_tail() -> None:
    states, head, labels, ids, logprobs = problem()
    logprobs = logprobs - logprobs.logsumexp(1, keepdim=True)  # p_tail = 0 up to rounding
    assert_same(states, head, labels, 7.0, LossWeights(), ids, logprobs)
    one_hot = torch.full_like(logprobs, -torch.inf)
    one_hot[:, 0] = 0.0
    loss, _ = fused_loss(states, head, labels, 7.0, LossWeights(1.0, 0.0), ids, one_hot)
    reference = torch.nn.functional.cross_entropy(states @ head.weight.T, ids[:, 0])
    torch.testing.assert_close(loss, reference, rtol=1e-11, atol=0)


def test_top_k_is_the_whole_vocabulary() -> None:
    states, head, labels, ids, logprobs = problem(vocab=6, k=6)
    assert_same(states, head, labels, 7.0, LossWeights(), ids, logprobs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sharp", [200.0, 5000.0])
def test_a_vanishing_student_tail_stays_finite(dtype: torch.dtype, sharp: float) -> None:
    """q_tail underflows while p_tail does not: the loss is large, its gradient bounded and right."""
    weight = torch.eye(4, dtype=dtype).mul_(sharp).requires_grad_()
    states = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    ids, logprobs = torch.tensor([[0]]), torch.tensor([[0.6]], dtype=dtype).log()
    loss, _ = fused_loss(states, Head(weight, 4), torch.tensor([0]), 1.0, LossWeights(1.0, 0.0), ids, logprobs)
    assert loss.item() == pytest.approx(0.4 * sharp, rel=0.05)
    (grad,) = torch.autograd.grad(loss, states)
    expected = torch.tensor([[0.4, -0.4 / 3, -0.4 / 3, -0.4 / 3]], dtype=dtype) * sharp
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


def test_tied_weights_add_both_gradients() -> None:
    states, head, labels, ids, logprobs = problem()
    tokens = torch.randint(head.vocab, (len(labels),))
    grads = []
    for loss_of in (lambda h: fused_loss(h, head, labels, 7.0, LossWeights(), ids, logprobs)[0],
                    lambda h: dense_loss(h, head, labels, 7.0, LossWeights(), ids, logprobs)):  # fmt: skip
        (grad,) = torch.autograd.grad(loss_of(torch.tanh(head.weight[tokens]) + states), head.weight)
        grads.append(grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_splitting_a_step_into_micro_batches_changes_nothing() -> None:
    states, head, labels, ids, logprobs = problem(n=9)
    whole, sums = fused_loss(states, head, labels, 9.0, LossWeights(), ids, logprobs)
    parts = [
        fused_loss(states[s], head, labels[s], 9.0, LossWeights(), ids[s], logprobs[s])
        for s in (slice(0, 1), slice(1, 7), slice(7, 9))
    ]
    split = torch.stack([loss for loss, _ in parts]).sum()
    torch.testing.assert_close(whole, split, rtol=1e-13, atol=0)
    for a, b in zip(gradients(whole, states, head), gradients(split, states, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sums, sum(s for _, s in parts))


def test_metrics_are_what_they_say() -> None:
    states, head, labels, ids, logprobs = problem(n=40, vocab=9, k=3)
    _, sums = fused_loss(states, head, labels, 1.0, LossWeights(), ids, logprobs)
    q = torch.softmax(states @ head.weight.T, 1).detach()
    inside = q.gather(1, ids)
    buckets = torch.cat([inside, 1 - inside.sum(1, keepdim=True)], 1)
    metrics = Metrics.from_tensor(sums)
    assert metrics.mass == pytest.approx(inside.sum().item())
    assert metrics.agree == (q.argmax(1) == ids[:, 0]).sum().item()
    assert 0 < metrics.agree < 40
    assert metrics.entropy == pytest.approx(-(buckets * buckets.log()).sum().item())
    kl_only, _ = fused_loss(states, head, labels, 1.0, LossWeights(1.0, 0.0), ids, logprobs)
    assert metrics.kd == pytest.approx(kl_only.item())


def test_bf16_products_stay_close_to_fp32() -> None:
    states, head, labels, ids, logprobs = problem(n=64, hidden=32, vocab=300, k=8, spread=0.3)
    head = Head(head.weight.detach().float().requires_grad_(), 300)
    states = states.detach().float().requires_grad_()
    exact, _ = fused_loss(states, head, labels, 64.0, LossWeights(), ids, logprobs)
    reference = gradients(exact, states, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = fused_loss(states, head, labels, 64.0, LossWeights(), ids, logprobs)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    for a, b in zip(gradients(loss, states, head), reference, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < 2e-2


def test_a_frozen_head_gets_no_gradient_and_a_second_backward_is_refused() -> None:
    states, head, labels, ids, logprobs = problem()
    frozen = Head(head.weight.detach(), head.vocab)
    loss, _ = fused_loss(states, frozen, labels, 7.0, LossWeights(), ids, logprobs)
    loss.backward(retain_graph=True)
    assert states.grad is not None
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    vocab=st.integers(2, 12),
    data=st.data(),
    seed=st.integers(0, 10_000),
    spread=st.floats(0.01, 30.0),
    kd=st.floats(0.0, 1.0),
)
def test_any_problem_matches_the_dense_definition(
    n: int, vocab: int, data: st.DataObject, seed: int, spread: float, kd: float
) -> None:
    k = data.draw(st.integers(1, vocab))
    states, head, labels, ids, logprobs = problem(n, 3, vocab, data.draw(st.integers(0, 3)), k, seed, spread=spread)
    kept = data.draw(st.lists(st.integers(0, k), min_size=n, max_size=n))
    for row, count in enumerate(kept):
        ids[row, count:], logprobs[row, count:] = -1, -torch.inf
    assert_same(states, head, labels, float(n), LossWeights(kd, 1 - kd), ids, logprobs)


@pytest.mark.parametrize(
    ("fields", "scale", "softcap"),
    [
        ({}, 1.0, None),
        ({"logit_scale": 0.0625}, 0.0625, None),
        ({"logits_scaling": 8.0}, 0.125, None),
        ({"final_logit_softcapping": 30.0}, 1.0, 30.0),
    ],
)
def test_head_reads_the_scalings_of_the_config(fields: dict[str, float], scale: float, softcap: float | None) -> None:
    from train_kit import tiny_model

    model = tiny_model(64)
    for key, value in fields.items():
        setattr(model.config, key, value)
    head = Head.of(model, 60)
    assert (head.scale, head.softcap, head.vocab) == (scale, softcap, 60)
    assert head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["Gemma2", "Cohere", "Granite"])
def test_scaled_heads_agree_with_transformers_own_forward(family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        **({"logit_scale": 0.3} if family == "Cohere" else {"logits_scaling": 3.0} if family == "Granite" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double()
    if family == "Gemma2":
        model.config.final_logit_softcapping = 2.0
    tokens = torch.randint(3, 64, (1, 12))
    labels = torch.randint(3, 64, (12,))
    logits = model(tokens).logits[0]
    ours, _ = fused_loss(model.model(tokens).last_hidden_state[0], Head.of(model, 64), labels, 12.0)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    grads = [
        torch.autograd.grad(loss, model.get_output_embeddings().weight, retain_graph=True)[0]
        for loss in (ours, expected)
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-8)
