"""Chat templates from model files: rendered, but never trusted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BadModelFile, BadRequest
from engine.template import CUT, MAX_SOURCE_CHARS, ChatTemplate, Defuser

MESSAGES = [{"role": "user", "content": "Hello"}]


def render(source: str) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES, None)


def test_template_sees_messages_tools_and_special_tokens() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}>{% endif %}"
    )
    rendered = ChatTemplate(source, bos="<s>", eos="</s>").render(MESSAGES, [{"name": "é<tool>"}])
    assert rendered == '<s>USER: Hello</s>[{"name": "é<tool>"}]>'


def test_template_may_use_loop_controls_namespaces_and_dates() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ strftime_now('%Y') | length }}"
    )
    assert render(source) == "34"


def test_template_can_refuse_a_conversation() -> None:
    with pytest.raises(BadRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ raise_exception.__globals__['os'].system('id') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ joiner.__init__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '%s' % messages }}",
    "{{ messages.append({'role': 'system'}) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ dict.__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('id') }}",
    "{% extends '/etc/passwd' %}",
    "{{ messages | attr('__class__') }}",
    "{{ request.application }}",
    "{{ ''|attr('__class__') }}",
]


@pytest.mark.parametrize("source", ESCAPES)
@pytest.mark.sec("SEC-099")
def test_template_cannot_leave_its_sandbox(source: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    try:
        rendered = ChatTemplate(source, bos="", eos="").render(messages, None)
    except (BadRequest, BadModelFile):
        rendered = ""
    assert rendered.strip() == ""
    assert messages == [{"role": "user", "content": "Hello"}]


BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ 'a' * 999999999 }}",
    "{{ 999999999 * 'a' }}",
    "{{ [0] * 999999999 }}",
    "{{ 10 ** 999999999 }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'a' | center(999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ range(999999999) | list }}",
    "{{ messages | tojson(indent=999999999) }}",
    "{% for i in range(90000) %}{% for j in range(90000) %}{{ 'x' * 900000 }}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ 1 / 0 }}",
    "{{ nothing.at.all }}",
    "{{ messages[99].content }}",
    "{{ 'a' + 1 }}",
]


@pytest.mark.parametrize("source", BOMBS)
@pytest.mark.sec("SEC-099")
def test_template_that_fails_or_explodes_is_a_bad_request(source: str) -> None:
    with pytest.raises((BadRequest, BadModelFile)):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 'open", "{% endfor %}", "x" * (MAX_SOURCE_CHARS + 1), "{{" * 9_000]
)
def test_source_that_is_no_template_is_a_bad_model_file(source: str) -> None:
    with pytest.raises(BadModelFile):
        render(source)


SPECIALS = ["<|im_start|>", "<|im_end|>", "</s>", "<tool_call>", "<|a<|b|>", "[INST]", "aa"]
attack_text = st.lists(
    st.one_of(st.sampled_from(SPECIALS), st.sampled_from(["<", "|>", "im_start", "s>", "a", CUT]), st.text(max_size=3)),
    max_size=8,
).map("".join)


@given(st.lists(attack_text, min_size=1, max_size=4))
@pytest.mark.sec("SEC-100")
def test_defused_texts_never_hold_or_form_a_special_token(texts: list[str]) -> None:
    defuse = Defuser(SPECIALS).text
    pieces = "".join(defuse(text) for text in texts).split(CUT)
    assert not [special for special in SPECIALS for piece in pieces if special in piece]
    assert "".join(pieces) == "".join(texts).replace(CUT, "\ufffd")


def test_harmless_text_is_left_as_it_is() -> None:
    defuser = Defuser(SPECIALS)
    value = {"role": "user", "content": ["Hello, 1 < 2 and 漢字", 3, None, True]}
    assert defuser.value(value) == value
