"""A chat template that must not run is refused by name when a tokenizer is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.new_tokenizer import CHAT_TEMPLATE
from nemo_diffgemma.tokenizer import Tokenizer
from tests.model.templates import ALTERNATING, GEMMA, LEAKY, tokenizer

LOOP = "{% for i in range(1000) %}"


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ lipsum.__globals__ }}", "line 1: .__globals__"),
        ("\n{{ lipsum.__globals__['os'].popen('id').read() }}", "line 2: .__globals__"),
        ("{{ ''['__class__'] }}", "line 1: __class__"),
        ("{{ '' | attr('__class__') }}", "line 1: __class__"),
        ("{{ messages._x }}", "line 1: ._x"),
        ("{% if false %}{{ x.__init__ }}{% endif %}", "line 1: .__init__"),
        ("{% for i in range(1000000000000) %}{% endfor %}", "line 1: 1000000000000"),
        ("{{ 'x' * 10**12 }}", "line 1: **"),
        ("{{ 'x' * 999999999 }}", "line 1: 999999999"),
        (f"{LOOP}{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}{{% endfor %}}", "more than 100000 steps"),
        ("{{ 'x' * 1000000 * 2 }}", "2000000 characters"),
        ("{{ 'x' * 1000000 * 900 }}", "more memory than it gets"),
        ("{{ '%900000000d' % 1 }}", "more memory than it gets"),
        ("{% for %}", "line 1: "),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "brackets or blocks too deep"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "brackets or blocks too deep"),
    ],
)
def test_what_a_template_must_not_do_is_named(tmp_path: Path, template: str, value: str) -> None:
    with pytest.raises(FieldError) as error:
        tokenizer(tmp_path, template)
    assert error.value.field == "chat_template"
    assert str(error.value.value).startswith(value)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GEMMA, ALTERNATING, LEAKY])
def test_templates_that_are_used_are_accepted(tmp_path: Path, template: str) -> None:
    assert tokenizer(tmp_path, template).chat([{"role": "user", "content": "red"}])


def test_transformers_tag_around_answers_is_known(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    assert isinstance(tokenizer(tmp_path, template), Tokenizer)
