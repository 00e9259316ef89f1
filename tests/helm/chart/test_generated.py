"""values.schema.json and the README's table follow from values.yaml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helm import generate
from nemo_diffgemma.errors import FieldError
from tests.helm.chart.rendering import ROOT


def test_the_committed_files_are_the_generated_ones() -> None:
    for path, content in generate.rendered().items():
        assert path.read_text() == content, f"{path.name}: make format"


def test_every_level_refuses_unknown_keys_and_every_value_is_described() -> None:
    schema = json.loads(generate.SCHEMA.read_text())

    def check(node: dict[str, Any], path: str) -> None:
        assert "additionalProperties" in node, path
        for key, inner in node["properties"].items():
            if "properties" in inner and "description" not in inner:
                check(inner, f"{path}.{key}")
            else:
                assert len(inner["description"]) > 3, f"{path}.{key}"
                assert inner.get("type") != "object" or key == "global" or "additionalProperties" in inner, (
                    f"{path}.{key}"
                )

    check(schema, "")
    assert schema["additionalProperties"] is False


def test_a_value_without_a_description_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("a:\n  # -- Described\n  b: 1\n  c: 2\n")
    with pytest.raises(FieldError, match=r"a\.c: 2 cannot be used; allowed: a value with a `# --` comment"):
        generate.read_values(path)


def test_a_schema_comment_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("# -- Described\n# @schema {minimum: 1}\na: 1\n")
    with pytest.raises(FieldError, match="a: @schema"):
        generate.read_values(path)


def test_types_follow_from_defaults_and_comments_may_go_on(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text('# not this\n\n# -- First line\n# and the next\n# @schema {"minimum": 1}\na: 1\n# -- Text\nb: ""\n')
    first, second = generate.read_values(path)
    assert first.schema() == {"description": "First line and the next", "default": 1, "type": "integer", "minimum": 1}
    assert second.kind == "string"


def test_the_check_fails_on_drift(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "helm" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr
    readme = generate.README.read_text()
    values = generate.read_values()
    assert generate.render_readme(values[1:], readme) != readme
    assert generate.render_schema(values[1:]) != generate.SCHEMA.read_text()
