"""Initialisers: which layers stay, and that what stays computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritsafe.config import parse_config
from spiritsafe.errors import BadInput
from spiritsafe.tokens import tokenizer_hash
from spiritsafe.train import (
    Example,
    StudentConfig,
    TrainConfig,
    even_layers,
    init_student,
    load_source,
    prune_layers,
    save_student,
    sensitivity,
    sensitivity_layers,
)
from train_kit import save_tiny, tiny_model, tiny_tokenizer


@given(total=st.integers(2, 120), data=st.data())
def test_even_layers_keeps_both_ends_and_no_layer_twice(total: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(2, total))
    keep = even_layers(total, n)
    assert len(keep) == n and keep[0] == 0 and keep[-1] == total - 1
    gaps = np.diff(keep)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_pruning_leaves_the_source_alone_and_runs_the_kept_layers() -> None:
    model = tiny_model(64, layers=5).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_layers(model, (0, 3, 4)).eval()
    assert len(model.model.layers) == 5 and model.config.num_hidden_layers == 5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert pruned.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1, 2]

    tokens = torch.randint(64, (1, 9))
    hidden = model.model.embed_tokens(tokens)
    position = model.model.rotary_emb(hidden, torch.arange(9)[None])
    for i in (0, 3, 4):
        hidden = model.model.layers[i](hidden, position_embeddings=position)
    torch.testing.assert_close(pruned.model(tokens).last_hidden_state, model.model.norm(hidden))
    # With a key-value cache, which goes by layer_idx, it says the same.
    cached = pruned.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False, eos_token_id=None
    )
    plain = pruned.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        use_cache=False,
    )
    assert torch.equal(cached, plain)
    with torch.no_grad():
        pruned.model.layers[0].mlp.up_proj.weight.zero_()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


def test_pruning_takes_per_layer_settings_along() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=kinds, sliding_window=4, pad_token_id=0,
    )  # fmt: skip
    pruned = prune_layers(Gemma3ForCausalLM(config), (0, 2, 3))
    assert pruned.config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert pruned(torch.randint(64, (1, 9))).logits.shape == (1, 9, 64)


def calibration(vocab: int = 64) -> list[Example]:
    rng = np.random.default_rng(0)
    lengths = ((17, 10), (9, 13))
    return [Example(str(i), *(rng.integers(3, vocab, n).astype(np.int32) for n in ns)) for i, ns in enumerate(lengths)]


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_sensitivity_is_the_kl_to_the_model_without_the_layer(family: str) -> None:
    if family == "Llama":
        model = tiny_model(64, layers=5).eval()
    else:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
        config = Gemma3TextConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, layer_types=kinds, sliding_window=4, pad_token_id=0,
            initializer_range=0.3,
        )  # fmt: skip
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config).eval()
    examples = calibration()
    hurt = sensitivity(model, examples, 64)
    assert hurt[0] == hurt[4] == float("inf")
    for layer in (1, 2, 3):
        pruned = prune_layers(model, [i for i in range(5) if i != layer]).eval()
        total = 0.0
        for e in examples:
            ids = torch.from_numpy(np.concatenate([e.prompt_ids, e.completion_ids]).astype(np.int64))[None]
            span = slice(len(e.prompt_ids) - 1, ids.shape[1] - 1)
            log_p, log_q = (m(ids).logits[0, span].log_softmax(-1) for m in (model, pruned))
            total += (log_p.exp() * (log_p - log_q)).sum().item()
        assert hurt[layer] == pytest.approx(total / 23, rel=1e-3)
    assert len(set(hurt)) == 4
    worst = max((1, 2, 3), key=hurt.__getitem__)
    assert sensitivity_layers(model, 3, examples, 64) == (0, worst, 4)


def test_sensitivity_drops_the_layers_that_do_nothing_and_needs_examples() -> None:
    model = tiny_model(64, layers=6)
    with torch.no_grad():
        for i in (1, 4):  # their output is their input: the residual branch is silent
            model.model.layers[i].self_attn.o_proj.weight.zero_()
            model.model.layers[i].mlp.down_proj.weight.zero_()
    assert sensitivity_layers(model, 4, calibration(), 64) == (0, 2, 3, 5)
    assert len(model.model.layers) == 6 and type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"
    with pytest.raises(BadInput, match="needs training examples"):
        sensitivity_layers(model, 4, [], 64)


def test_prune_takes_the_source_before_the_teacher(tmp_path: Path) -> None:
    teacher, other = save_tiny(tmp_path / "t", 4, seed=1), save_tiny(tmp_path / "o", 6, seed=2)
    config = StudentConfig(layers=3, strategy="even", source=str(other))
    student = init_student(config, load_source(config, str(teacher)))
    assert student.kept_layers == (0, 3, 5)
    assert student.description == "o, 3 of 6 layers (even)"
    assert all(p.requires_grad and p.dtype == torch.float32 for p in student.model.parameters())


def test_a_model_as_it_is_and_from_scratch(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "m", 4))
    whole = StudentConfig(init=folder)
    assert init_student(whole, load_source(whole)).kept_layers is None
    scratch = StudentConfig(init="scratch", layers=2, hidden=32, heads=4, tokenizer=folder)
    a, b = (init_student(scratch, load_source(scratch), seed=s).model for s in (0, 1))
    assert a.config.vocab_size == len(tiny_tokenizer()) and a.config.eos_token_id == 2
    assert not torch.equal(a.model.embed_tokens.weight, b.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "prune"}, "prune needs weights"),
        ({"init": "scratch", "hidden": 32, "heads": 4, "layers": 2}, "scratch needs a tokenizer"),
        ({"init": "no/such/model/anywhere"}, "no such file or folder"),
    ],
)
def test_missing_sources_say_what_to_do(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_source(StudentConfig(**fields))  # type: ignore[arg-type]


def test_too_many_layers(tmp_path: Path) -> None:
    config = StudentConfig(layers=5, source=str(save_tiny(tmp_path / "m", 4)))
    with pytest.raises(BadInput, match=r"student\.layers: 5, but .* has 4 layers"):
        init_student(config, load_source(config))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (StudentConfig, {"init": ""}, "init is empty"),
        (StudentConfig, {"init": "prune", "hidden": 64}, "belong to init: scratch"),
        (StudentConfig, {"init": "scratch", "hidden": 64}, "needs hidden, layers and heads"),
        (StudentConfig, {"init": "scratch", "hidden": 60, "heads": 8, "layers": 2}, "multiple of 2"),
        (StudentConfig, {"init": "some/model", "layers": 4}, "name it as source"),
        (StudentConfig, {"layer": 20}, "did you mean layers"),
        (TrainConfig, {"objective": "on-policy"}, "'sft' or 'topk'"),
        (TrainConfig, {"kd_weight": 0, "ce_weight": 0}, "nothing would be learnt"),
        (TrainConfig, {"lora": {"rank": 4}}, "unknown key lora.rank"),
        (TrainConfig, {"epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_configs_refuse_what_makes_no_sense(model: type, data: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_config(data, model, "recipe")


def test_defaults_are_the_interfaces() -> None:
    config = TrainConfig()
    assert (config.epochs, config.lr, config.batch_tokens, config.lora) == (3, 2e-4, 2048, None)
    assert (config.kd_weight, config.ce_weight, config.k, config.temperature) == (0.9, 0.1, 64, 1.0)


@pytest.mark.slow
def test_a_prune_of_the_real_gguf_loads_with_plain_transformers(smollm2_gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = StudentConfig(layers=3, strategy="even", source=str(smollm2_gguf))
    student = init_student(config, load_source(config))
    assert student.kept_layers == (0, 15, 29)
    save_student(student.model, student.tokenizer, tmp_path / "student", torch.bfloat16)
    settings = json.loads((tmp_path / "student" / "config.json").read_text())
    assert "quantization_config" not in settings and settings["num_hidden_layers"] == 3
    model, tokenizer = (kind.from_pretrained(tmp_path / "student") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == 2
    assert tokenizer.chat_template == student.tokenizer.chat_template
    assert tokenizer_hash(tokenizer) == tokenizer_hash(student.tokenizer)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
