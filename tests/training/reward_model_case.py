"""A small reward model with weights that do something, and pairs for it."""

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, MistralConfig, Qwen2Config

from mathrl.config import Config, LoraSection, ModelConfig
from mathrl.memory.shapes import why_not_packed
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.loading import ADAPTER, add_adapter
from mathrl.policy.scratch import build_base
from mathrl.rewards.learned import conversation, give_template
from mathrl.training.reward_model_data import EncodedPair, Pair, encode_pairs
from mathrl.training.reward_model_files import RewardModel

SIZES = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48)
ANSWERS = [
    (" 3+4=7\n#### 7", " #### 8"),
    (" #### 12", " 3*4=12, so it is 12\n#### 13"),
    (" #### 5", " #### 6"),
    (" 2+2=4\n4+4=8\n#### 8", " 2+2=4\n4+4=9\n#### 9"),
    (" 7", " 7 or 8"),  # the one is how the other begins
]
PAIRS = [
    Pair(
        (conversation(f"Ann has {i} apples and buys {i * i}. How many has she?", "")[0],),
        (conversation("", better)[1],),
        (conversation("", worse)[1],),
        margin=0.25 * i,
        where=f"row {i + 1}",
    )
    for i, (better, worse) in enumerate(ANSWERS)
]


def make_tokenizer() -> Any:
    _, tokenizer = build_base(SIZES, seed=0)
    give_template(tokenizer)
    return tokenizer


def make_reward_model(architecture: str = "qwen2", dtype: torch.dtype = torch.float32) -> RewardModel:
    """The same weights at every call, float32 values in any type; neither head nor adapter is zero."""
    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    configs = {"qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig}
    torch.manual_seed(3)
    config = configs[architecture](**shape)
    classifier = AutoModelForSequenceClassification.from_config(config)
    if not why_not_packed(config):
        classifier.set_attn_implementation(IMPLEMENTATION)
    classifier.requires_grad_(False).eval()
    for parameter in classifier.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    model = add_adapter(classifier, LoraSection(rank=4, alpha=8), seed=0, head="score")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    classifier.score.modules_to_save[ADAPTER].weight.data.normal_(0, 0.3)
    return RewardModel(model.to(dtype), tokenizer, "")


def encoded(tokenizer: Any = None) -> list[EncodedPair]:
    return encode_pairs(tokenizer or make_tokenizer(), PAIRS, 128, skip=False)


def config_of(**sections: Any) -> Config:
    return Config.model_validate({"recipe": "test", "run": {"num_threads": 1}, **sections})
