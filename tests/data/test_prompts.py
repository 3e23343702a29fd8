"""Prompts: a problem's own system prompt, and chat templates that cannot take it or cannot be used."""

import pytest

from mathrl.data.few_shot import FewShotTemplate
from mathrl.data.prompts import PromptTemplate
from mathrl.data.wordproblems import corpus
from mathrl.errors import UserError
from mathrl.policy.scratch import build_tokenizer
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


@pytest.mark.parametrize("broken", ["{% for m in messages %}", "{{ messages[0]['content'] + 1 }}"])
def test_a_broken_template_is_told_in_one_sentence(tokenizer, broken: str) -> None:
    with pytest.raises(UserError, match="chat template of .* cannot be used .*to 'plain'") as told:
        chat(tokenizer, broken).text(ONE)
    assert "\n" not in str(told.value)
