"""A learned reward model: what it is given, what it returns, and that batching does not matter."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mathrl.config import ModelConfig, RewardConfig
from mathrl.data.prompts import PromptTemplate
from mathrl.errors import UserError
from mathrl.policy.scratch import build_base
from mathrl.rewards.learned import (
    RewardModelScorer,
    conversation,
    encode_conversations,
    give_template,
    make_reward_model,
)
from mathrl.rewards.scorer import RewardScorer, rollout_metrics
from mathrl.types import Completion, Group, Problem

PROBLEMS = [Problem(str(i), f"What is {i} + {i * i}?", str(i + i * i)) for i in range(7)]
COMPLETIONS = [Completion((1,) * (i + 1), f"#### {i}" + " so" * i, "stop") for i in range(7)]


def build(labels: int, folder=None):
    """A small classifier with random weights and its tokenizer."""
    _, tokenizer = build_base(ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2), seed=0)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=64, num_labels=labels, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    if folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def by_hand(model, tokenizer, problem, completion):
    """The logits of one question and completion by themselves, without padding."""
    inputs = tokenizer(problem.question, completion.text, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits[0]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_one_label_is_the_score_in_any_batch_and_order(batch_size):
    model, tokenizer = build(1)
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64, batch_size=batch_size)
    expected = [by_hand(model, tokenizer, p, c).item() for p, c in zip(PROBLEMS, COMPLETIONS, strict=True)]
    assert scorer(PROBLEMS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert scorer(PROBLEMS[::-1], COMPLETIONS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_several_labels_are_the_last_ones_log_odds():
    model, tokenizer = build(3)
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64)
    expected = []
    for problem, completion in zip(PROBLEMS, COMPLETIONS, strict=True):
        p = by_hand(model, tokenizer, problem, completion).softmax(0)
        expected.append(torch.log(p[2] / (p[0] + p[1])).item())
    assert scorer(PROBLEMS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_a_chat_template_frames_question_and_completion():
    model, tokenizer = build(1)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64)
    text = f"user: {PROBLEMS[2].question} assistant: {COMPLETIONS[2].text} "
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0, 0].item()
    assert scorer([PROBLEMS[2]], [COMPLETIONS[2]]) == pytest.approx([expected], abs=1e-5)


def test_from_a_folder_into_the_reward_weighted_beside_the_verifier(tmp_path):
    model, tokenizer = build(1, tmp_path)
    config = RewardConfig(model_path=str(tmp_path), model_weight=0.5, num_workers=1)
    scorer = RewardScorer(config, "gsm8k", make_reward_model(config))
    try:
        group = Group(
            PROBLEMS[1], (3,), (Completion((1,), "#### 2", "stop"), Completion((1,), "#### 3", "stop"))
        )
        (scored,) = scorer.score([group])
    finally:
        scorer.close()
    logits = [by_hand(model, tokenizer, PROBLEMS[1], c).item() for c in group.completions]
    assert [s.reward for s in scored.scores] == pytest.approx(
        [1 + 0.5 * logits[0], 0.5 * logits[1]], abs=1e-5
    )
    metrics = rollout_metrics([scored])
    assert metrics["reward/answer"] == 0.5
    assert metrics["reward/model"] == pytest.approx(0.25 * sum(logits), abs=1e-5)


def test_none_without_a_path_and_one_sentence_for_a_bad_one(tmp_path):
    assert make_reward_model(RewardConfig()) is None
    assert make_reward_model(RewardConfig(model_path=str(tmp_path), model_weight=0.0)) is None
    with pytest.raises(UserError, match="holds no sequence-classification model"):
        make_reward_model(RewardConfig(model_path=str(tmp_path), model_weight=1.0))


def test_a_model_without_a_trained_head_gives_no_rewards(tmp_path):
    model, tokenizer = build(1)
    settings = {key: getattr(model.config, key) for key in ("vocab_size", "hidden_size", "intermediate_size")}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text_model = Qwen2ForCausalLM(Qwen2Config(**settings))
    for saved in (text_model, tokenizer):
        saved.save_pretrained(tmp_path / "text")
    adapted = get_peft_model(text_model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "text")
    for saved in (adapted, tokenizer):
        saved.save_pretrained(tmp_path / "adapter")
    for folder, words in (("text", "score.weight is missing"), ("adapter", "adapter is for CAUSAL_LM")):
        with pytest.raises(UserError, match=f"reward.model_path .*{folder}.*{words}"):
            make_reward_model(RewardConfig(model_path=str(tmp_path / folder), model_weight=1.0))


def test_a_reward_model_and_its_weight_are_named_together():
    with pytest.raises(ValueError, match="nothing says what it counts: set reward.model_weight"):
        RewardConfig(model_path="some-model")
    with pytest.raises(ValueError, match="name it with reward.model_path"):
        RewardConfig(model_weight=0.2)
    assert [RewardConfig(model_path="m", model_weight=w).learned for w in (0.2, -1.0, 0.0)] == ["m", "m", ""]


def classifier(kind: str, tokenizer, **settings):
    """A small classifier of one label whose scores differ from text to text."""
    torch.manual_seed(1)
    shape = {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    if kind == "gpt2":  # learned positions: padding on the left would move them
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **shape)
    elif kind == "bert":  # every token sees padding, but for the mask
        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **shape
        )
    else:
        config = LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **shape
        )
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    return model.eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_equal_texts_have_equal_scores_whatever_stands_beside_them(kind, side):
    tokenizer = build(1)[1]
    tokenizer.padding_side = side
    scorer = RewardModelScorer(classifier(kind, tokenizer), tokenizer, max_tokens=100)
    assert scorer.pads
    alone = [scorer([p], [c])[0] for p, c in zip(PROBLEMS, COMPLETIONS, strict=True)]
    assert scorer(PROBLEMS, COMPLETIONS) == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert len({round(score, 3) for score in alone}) == len(alone)


def test_a_model_that_sees_padding_gets_batches_of_equal_lengths():
    tokenizer = build(1)[1]
    model = classifier("llama", tokenizer)
    inner = model.forward

    def reads_its_width(input_ids, **inputs):
        found = inner(input_ids=input_ids, **inputs)
        found.logits = found.logits + input_ids.shape[1]
        return found

    model.forward = reads_its_width
    scorer = RewardModelScorer(model, tokenizer, max_tokens=100)
    assert not scorer.pads
    alone = [scorer([p], [c])[0] for p, c in zip(PROBLEMS, COMPLETIONS, strict=True)]
    twice = scorer([*PROBLEMS, *PROBLEMS], [*COMPLETIONS, *COMPLETIONS])
    assert twice == pytest.approx(alone * 2, rel=1e-5, abs=1e-5)


def test_options_are_part_of_what_was_asked():
    model, tokenizer = build(1)
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64)
    bare, with_options = Problem("1", "Which?", "A"), Problem("1", "Which?", "A", options=("one", "two"))
    joined = Problem("1", "Which?\nA) one\nB) two", "A")
    scores = scorer([bare, with_options, joined], [COMPLETIONS[0]] * 3)
    assert scores[1] == pytest.approx(scores[2], abs=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_a_tokenizer_without_a_template_writes_conversations_as_prompts_are_written():
    tokenizer = build(1)[1]
    give_template(tokenizer)
    problem = PROBLEMS[3]
    prompt = PromptTemplate(tokenizer, "plain").encode(problem)
    for text in (" 9+3=12\n#### 12", "9+3=12\n#### 12", "\n#### 12"):
        (ids,) = encode_conversations(tokenizer, [conversation(problem.question, text)])
        sampled = tokenizer(text if text[0].isspace() else f" {text}")["input_ids"]
        assert ids == (*prompt, *sampled)  # the pad token is the end token here: the end is not read
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    give_template(tokenizer)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"  # its own stays


def test_bos_begins_a_conversation_where_it_begins_a_prompt():
    tokenizer = build(1)[1]
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    give_template(tokenizer)
    assert not tokenizer.chat_template.startswith("{{ bos_token }}")  # its models never see one
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    give_template(tokenizer)
    (ids,) = encode_conversations(tokenizer, [conversation("1 + 1?", "2")])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    model, tokenizer = build(1)
    model.save_pretrained(tmp_path)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"reward.model_path .* they do not belong together"):
        make_reward_model(RewardConfig(model_path=str(tmp_path), model_weight=1.0))


def test_a_tokenizer_that_cannot_pad_is_told_in_a_sentence(tmp_path):
    _, tokenizer = build(1, tmp_path)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither a pad nor an end token"):
        make_reward_model(RewardConfig(model_path=str(tmp_path), model_weight=1.0))
