"""Prompts: a problem's own system prompt, and chat templates that cannot take it or cannot be used."""

from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from mathrl.config import Config
from mathrl.data.few_shot import FewShotTemplate
from mathrl.data.prompts import PromptTemplate, make_template
from mathrl.data.wordproblems import corpus
from mathrl.errors import UserError
from mathrl.policy.loading import add_stop_tokens
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_model, build_tokenizer
from mathrl.recipes import dump, load_config, load_recipe
from mathrl.rollout.base import eos_ids
from mathrl.training.sft import load_examples, train_reference
from mathrl.types import Problem

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHAT
ONE = Problem("1", "What is 1?", "1")
BRIEF = Problem("2", "What is 2?", "2", system_prompt="Be brief.")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(corpus(), 400)


def chat(tokenizer, template: str, **settings) -> PromptTemplate:
    tokenizer.chat_template = template
    return PromptTemplate(tokenizer, "chat", extract="none", **settings)


def test_a_problems_own_system_prompt_takes_the_place_of_the_recipes(tokenizer) -> None:
    template = chat(tokenizer, CHAT, system_prompt="Be kind.")
    assert template.text(ONE) == "<system>Be kind.<user>What is 1?<assistant>"
    assert template.text(BRIEF) == "<system>Be brief.<user>What is 2?<assistant>"
    assert chat(tokenizer, CHAT).text(ONE) == "<user>What is 1?<assistant>"


def test_without_a_chat_it_comes_before_the_question(tokenizer) -> None:
    plain = PromptTemplate(tokenizer, "plain", system_prompt="Be kind.")
    assert plain.text(ONE) == "Question: What is 1?\nAnswer:"
    assert plain.text(BRIEF) == "Be brief.\n\nQuestion: What is 2?\nAnswer:"
    shown = FewShotTemplate(tokenizer, [BRIEF], extract="gsm8k")
    assert shown.text(ONE) == "Question: What is 2?\nAnswer: #### 2\n\nQuestion: What is 1?\nAnswer:"
    assert shown.text(BRIEF).startswith("Be brief.\n\nQuestion: What is 2?\nAnswer: #### 2\n\nQuestion:")


def test_a_template_that_takes_no_system_prompt_is_told_in_one_sentence(tokenizer) -> None:
    template = chat(tokenizer, NO_SYSTEM, system_prompt="Be kind.")
    with pytest.raises(UserError, match="refuses a chat with a system prompt .No system.*system_prompt"):
        template.text(ONE)
    template = chat(tokenizer, NO_SYSTEM)
    assert template.text(ONE) == "<user>What is 1?<assistant>"
    with pytest.raises(UserError, match="system turns out of the data"):
        template.text(BRIEF)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_tokenizer():
    """As chat models have it: a document ends with one token, a turn with another."""
    tokenizer = build_tokenizer(corpus(), 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|im_end|>!"]})
    assert tokenizer.eos_token == "<|endoftext|>"
    return tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "<|im_end|>!"), "<|im_end|>!"),  # the longest that fits
        (CHATML.replace("<|im_end|>", " <|endoftext|>"), "<|endoftext|>"),
        (CHATML.replace("<|im_end|>", ""), "<|endoftext|>"),  # nothing closes a turn
        (CHATML.replace("<|im_end|>", "(over)"), "<|endoftext|>"),  # text, not a token
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_start|>",
            "<|endoftext|>",
        ),  # always opened
        ("{{ messages[1]['content'] }}<|im_end|>{{ raise_exception('no') }}", "<|endoftext|>"),
    ],
)
def test_a_completion_ends_with_what_ends_a_turn_in_the_chat_template(chat_tokenizer, template, end) -> None:
    ends = chat(chat_tokenizer, template)
    assert chat_tokenizer.convert_ids_to_tokens(ends.end_id) == end
    assert ends.encode_completion("#### 7")[-1] == ends.end_id
    plain = PromptTemplate(chat_tokenizer, "plain")
    assert plain.encode_completion("#### 7")[-1] == chat_tokenizer.eos_token_id


def test_sampling_stops_where_supervised_training_ends_a_turn(chat_tokenizer, tmp_path) -> None:
    """The reference teaches the turn's end; the policy, its engine and whoever loads the model stop there."""
    chat_tokenizer.chat_template = CHATML
    fields = {
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1},
        "run": {"device": "cpu"}, "sft": {"max_train_steps": 1, "batch_tokens": 64},
        "data": {"num_train_problems": 20}, "lora": {"rank": 2},
    }  # fmt: skip
    model = build_model(Config.model_validate(fields).model, chat_tokenizer, 0)
    for part in (model, chat_tokenizer):
        part.save_pretrained(tmp_path / "base")
    config = Config.model_validate(fields | {"model": {"path": str(tmp_path / "base")}})
    end = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    demonstrations = load_examples(config)
    assert {example.completion_ids[-1] for example in demonstrations.examples.values()} == {end}
    train_reference(config, tmp_path / "reference", demonstrations=demonstrations)
    saved = GenerationConfig.from_pretrained(tmp_path / "reference").eos_token_id
    assert set(saved) == {chat_tokenizer.eos_token_id, end}
    for folder in ("base", "reference"):
        policy = Policy.from_pretrained(tmp_path / folder, config)
        assert set(eos_ids(policy.model.get_base_model(), policy.tokenizer)) == set(saved)


@pytest.mark.parametrize("broken", ["{% for m in messages %}", "{{ messages[0]['content'] + 1 }}"])
def test_a_broken_template_is_told_in_one_sentence(tokenizer, broken: str) -> None:
    with pytest.raises(UserError, match="chat template of .* cannot be used .*to 'plain'") as told:
        chat(tokenizer, broken).text(ONE)
    assert "\n" not in str(told.value)


# --- how it is asked ----------------------------------------------------------------------------------------

CHOICE = Problem("3", "Which {options} is \\frac{4}{2}?", "B", options=("1", "2"))


@pytest.mark.parametrize(
    ("instruction", "asked"),
    [
        ("", "Which {options} is \\frac{4}{2}?\nA) 1\nB) 2"),
        (
            "Q: {question}\nBox it: \\boxed{}",
            "Q: Which {options} is \\frac{4}{2}?\nA) 1\nB) 2\nBox it: \\boxed{}",
        ),
        ("{options}\n{question}", "A) 1\nB) 2\nWhich {options} is \\frac{4}{2}?"),
    ],
)
def test_the_instruction_says_how_a_problem_is_asked(tokenizer, instruction, asked) -> None:
    assert chat(tokenizer, CHAT, instruction=instruction).text(CHOICE) == f"<user>{asked}<assistant>"


def test_a_plain_prompt_has_an_instruction_too(tokenizer) -> None:
    plain = PromptTemplate(tokenizer, "plain", instruction="Task: {question} =")
    assert plain.text(ONE) == "Task: What is 1? ="
    assert plain.describe()["prompt"] == "Task: {question} ="


def test_the_chat_template_is_given_its_own_settings(tokenizer) -> None:
    thinking = CHAT + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    assert chat(tokenizer, thinking).text(ONE) == "<user>What is 1?<assistant>"
    told = chat(tokenizer, thinking, chat_template_kwargs={"enable_thinking": False})
    assert told.text(ONE) == "<user>What is 1?<assistant><think></think>"
    assert told.describe() != chat(tokenizer, thinking).describe()


def test_a_recipe_sets_all_of_it(tokenizer, tmp_path) -> None:
    (tmp_path / "mine.toml").write_text("")
    settings = {
        "model.instruction": "{question} Box it.",
        "model.chat_template_kwargs.enable_thinking": "false",
        "model.chat_template_kwargs.effort": "low",
        "model.chat_template_kwargs.depth": "3",
        "model.stop_tokens": "2, <|eot|>",
    }
    config = load_recipe(str(tmp_path / "mine.toml"), list(settings.items()))
    assert config.model.chat_template_kwargs == {"enable_thinking": False, "effort": "low", "depth": 3}
    assert config.model.stop_tokens == (2, "<|eot|>")
    (tmp_path / "saved.toml").write_text(dump(config))
    assert load_config(tmp_path / "saved.toml") == config
    tokenizer.chat_template = CHAT + "{{ effort }}"
    assert make_template(config, tokenizer).text(ONE) == "<user>What is 1? Box it.<assistant>low"


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("model.instruction", "Solve it.", "must have {question} once"),
        ("model.instruction", "{question} {question}", "must have {question} once"),
        ("model.chat_template_kwargs.tokenize", "true", "tokenize is set by mathrl"),
        ("model.chat_template_kwarg.x", "1", "unknown option --model.chat_template_kwarg.x"),
    ],
)
def test_what_cannot_be_asked_is_refused(field, text, words, tmp_path) -> None:
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(UserError, match=words):
        load_recipe(str(tmp_path / "mine.toml"), [(field, text)])


def test_more_tokens_can_end_a_completion(tokenizer) -> None:
    def base(own):
        return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))

    word = tokenizer.convert_ids_to_tokens(20)
    for own, ends in ((None, {30, 20}), (5, {5, 20, 30}), ([5, 6], {5, 6, 20, 30})):
        model = base(own)
        add_stop_tokens(model, tokenizer, (30, word))
        assert set(eos_ids(model, tokenizer)) == ends | {tokenizer.eos_token_id}
    model = base(5)
    add_stop_tokens(model, tokenizer, ())
    assert eos_ids(model, tokenizer) == sorted({5, tokenizer.eos_token_id})
    for unknown in ("<|nowhere|>", 10**6, -1):
        with pytest.raises(UserError, match=r"model.stop_tokens: the tokenizer has no token"):
            add_stop_tokens(base(5), tokenizer, (unknown,))
