"""Chats as text, compared with what transformers makes of the same templates."""

import json

import pytest

from maxpo.lm.tasks.chat import ChatTemplate, has_chat_template, load_chat_template
from maxpo.lm.tasks.text import Problem

pytest.importorskip("jinja2")

# Written for these tests, each with the peculiarities of its kind.
CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helper.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """
{%- if tools %}{{ raise_exception('no tools here') }}{% endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and not message.content.startswith('<tool>') %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- if loop.index0 == ns.last %}{{ ' [last]' }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{- ' ' + message['content'] + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}
{% for message in messages %}
    {% if (message['role'] == 'assistant') %}
        {% set role = 'model' %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
    {{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "llama 3": LLAMA3,
    "qwen": QWEN,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "json": "{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ dict(a=1).a }}",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": " What is <b>7 times 8</b>? ñ & 中\n"}
SYSTEM = {"role": "system", "content": "Answer briefly.  "}
ASSISTANT = {"role": "assistant", "content": "56 "}
CHATS = {"user": [USER], "system": [SYSTEM, USER], "turns": [USER, ASSISTANT, USER]}


def rendered_by_transformers(source, messages, **variables):
    from transformers.utils.chat_template_utils import render_jinja_template

    found = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **TOKENS, **variables
    )
    return found[0][0]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_text_is_that_of_transformers(kind, chat):
    pytest.importorskip("transformers")
    template = ChatTemplate(TEMPLATES[kind], TOKENS)
    # The date is fixed here; transformers takes it as a variable.
    variables = {"date_string": "26 Jul 2024"} if kind == "llama 3" else {}
    try:
        expected = rendered_by_transformers(TEMPLATES[kind], CHATS[chat], **variables)
    except Exception as error:
        with pytest.raises(ValueError, match="chat template: expected messages") as raised:
            template(CHATS[chat])
        assert str(error) in str(raised.value)  # noqa: PT017 (that of the other implementation)
        return
    assert template(CHATS[chat]) == expected


@pytest.mark.parametrize("thinking", [True, False])
def test_variables_of_a_template(thinking):
    pytest.importorskip("transformers")
    found = ChatTemplate(QWEN, TOKENS)([USER], enable_thinking=thinking)
    assert found == rendered_by_transformers(QWEN, [USER], enable_thinking=thinking)
    assert ("<think>" in found) != thinking


def test_a_chat_written_by_hand():
    found = ChatTemplate(CHATML)([{"role": "user", "content": "2+3?"}])
    assert found == (
        "<|im_start|>system\nYou are a helper.<|im_end|>\n<|im_start|>user\n2+3?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_problems_become_chats():
    template = ChatTemplate("{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}")
    problem = Problem("2+3?", "5", {"n": 1})
    assert template.problem(problem) == problem._replace(prompt="<u>2+3?")
    assert template.problem(problem, system="Be brief").prompt == "<s>Be brief<u>2+3?"
    several = problem._replace(messages=(SYSTEM, USER, ASSISTANT, {**USER, "content": "?"}))
    assert template.problem(several).prompt.startswith("<s>Answer briefly.  <u> What")
    with pytest.raises(ValueError, match=r"task\.system: expected none for problems that begin"):
        template.problem(several, system="Be brief")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "expected a Jinja template, got"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ messages[0].name.first + 'x' }}", "no attribute 'name'"),
        ("{{ messages[0].content / 2 }}", "it fails with TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_templates_that_fail_say_so_in_one_sentence(source, message):
    with pytest.raises(ValueError, match=f"^chat template: .*{message}") as raised:
        ChatTemplate(source)([USER])
    assert "\n" not in str(raised.value)


def test_where_a_checkpoint_has_its_template(tmp_path):
    assert not has_chat_template(tmp_path)
    with pytest.raises(ValueError, match=r"got neither; set task\.chat=False"):
        load_chat_template(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": "{{ bos_token }}A", "bos_token": {"content": "<s>"}})
    )
    assert has_chat_template(tmp_path)
    assert load_chat_template(tmp_path)([USER]) == "<s>A"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(tmp_path)([USER]) == "D"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(ValueError, match="expected one of the name 'default', got tool_use"):
        load_chat_template(tmp_path)
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="chat_template: expected a text, got 3"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("newer", encoding="utf-8")
    assert load_chat_template(tmp_path)([USER]) == "newer"
