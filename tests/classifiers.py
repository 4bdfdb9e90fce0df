"""Tiny random classifiers of the real ones' architectures, as folders a judge loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from backfire.data.beavertails import CATEGORIES
from backfire.judges import (
    BeaverDam,
    DebertaBeaverTails,
    HarmBench,
    LlamaGuard,
    StrongReject,
)
from backfire.models.tiny import byte_tokenizer

GUARD_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>"
    "{% endfor %}POLICY<|assistant|>"
)


def tokenizer(words: Sequence[str] = (), begin: str = "") -> PreTrainedTokenizerFast:
    """A byte tokenizer in which some words are one token, with a mark before every text if asked."""
    from tokenizers import AddedToken, processors

    made = byte_tokenizer()
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    if begin:
        made.add_special_tokens({"bos_token": begin})
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, made.convert_tokens_to_ids(begin))]
        )
    return made


def _config(kind: str, vocabulary: int, **options: Any) -> Any:
    return AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=8192,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )


def _seeded(build: Any, config: Any, seed: int) -> PreTrainedModel:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = build.from_config(config)
    finally:
        torch.random.set_rng_state(state)
    for parameter in model.parameters():
        parameter.data.mul_(6)  # so that texts make a difference
    return model


def _saved(model: Any, words: PreTrainedTokenizerFast, folder: Path) -> str:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def beaverdam(folder: Path, seed: int = 0, labels: Sequence[str] = CATEGORIES) -> BeaverDam:
    """A Llama with 14 heads on its last token."""
    names = dict(enumerate(labels))
    words = tokenizer(begin="<s>")
    config = _config(
        "llama",
        len(words),
        num_key_value_heads=2,
        id2label=names,
        label2id={v: k for k, v in names.items()},
        problem_type="multi_label_classification",
    )
    model = _seeded(AutoModelForSequenceClassification, config, seed)
    return BeaverDam(model=_saved(model, words, folder))


def deberta(
    folder: Path, seed: int = 0, labels: Sequence[str] = ("LABEL_0", "LABEL_1")
) -> DebertaBeaverTails:
    """A DeBERTa-v3 with two classes."""
    from tokenizers import processors

    names = dict(enumerate(labels))
    words = byte_tokenizer()
    words.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(t, words.convert_tokens_to_ids(t)) for t in ("[CLS]", "[SEP]")],
    )
    config = _config(
        "deberta-v2",
        len(words),
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        position_biased_input=False,
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    model = _seeded(AutoModelForSequenceClassification, config, seed)
    return DebertaBeaverTails(model=_saved(model, words, folder))


def _answering(words: PreTrainedTokenizerFast, pair: tuple[str, str], seed: int) -> Any:
    """A Llama whose next token is always one of two."""
    config = _config("llama", len(words), num_key_value_heads=2, tie_word_embeddings=False)
    model: Any = _seeded(AutoModelForCausalLM, config, seed)
    head = model.lm_head.weight.data
    first, second = (words.convert_tokens_to_ids(word) for word in pair)
    keep = head[first].clone()
    head.zero_()
    head[first], head[second] = keep, -keep
    return model


def harmbench(folder: Path, seed: int = 0) -> HarmBench:
    """A Llama that says yes or no."""
    words = tokenizer(("yes", "no"), begin="<s>")
    return HarmBench(model=_saved(_answering(words, ("yes", "no"), seed), words, folder))


def llama_guard(folder: Path, seed: int = 0) -> LlamaGuard:
    """A Llama that says safe or unsafe in a guard's template."""
    words = tokenizer(("unsafe", "safe"), begin="<s>")
    words.chat_template = GUARD_TEMPLATE
    return LlamaGuard(model=_saved(_answering(words, ("unsafe", "safe"), seed), words, folder))


def strongreject(folder: Path, seed: int = 0) -> StrongReject:
    """A Gemma with an adapter, both random."""
    from peft import LoraConfig, get_peft_model

    words = tokenizer(begin="<bos>")
    config = _config("gemma", len(words), num_key_value_heads=1, head_dim=4)
    model = _seeded(AutoModelForCausalLM, config, seed)
    base = _saved(model, words, folder / "base")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed + 1)
    try:
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    finally:
        torch.random.set_rng_state(state)
    adapted.save_pretrained(folder / "adapter")
    return StrongReject(model=str(folder / "adapter"), base=base, min_mass=0)


STAND_INS = {
    "beaverdam": beaverdam,
    "deberta_beavertails": deberta,
    "harmbench": harmbench,
    "llama_guard": llama_guard,
    "strongreject": strongreject,
}
"""A builder for each classifier judge, by its name."""
