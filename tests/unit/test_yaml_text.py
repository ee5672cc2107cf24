"""gateway/yaml_text.py: a text is one value, or one line that says why it is none."""

import pytest

from gateway.yaml_text import NotYaml, parse


def test_a_text_is_its_value() -> None:
    assert parse("a: {b: [1, yes, null]}") == {"a": {"b": [1, True, None]}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("limits: {requests_per_minute: 5}\nlimits: {}\n", "`limits` is given twice", id="a section twice"),
        pytest.param("a: {b: 1, b: 1}", "`b` is given twice", id="a key twice, inside"),
        pytest.param("a: [", "while parsing", id="never closed"),
        pytest.param("a: !!python/object:os.system x", "could not determine a constructor", id="an object of Python"),
        pytest.param("[" * 20_000, "nested too deeply", id="20,000 levels"),
    ],
)
def test_what_is_no_yaml_says_why_in_one_line(text: str, told: str) -> None:
    with pytest.raises(NotYaml) as caught:
        parse(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)
