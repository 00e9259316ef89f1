"""Write what of the chart follows from elsewhere: ``values.schema.json`` and the README's table from the comments of
``values.yaml``, the dashboard from ``triton_repo/grafana/`` (a chart holds all of its files).

A comment ``# --`` above a key describes it, in one or more lines; ``# @schema {...}`` adds JSON Schema to what follows
from the default. A mapping with a description is one value; without, each of its keys needs one.

    python helm/generate.py --check | --write
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_diffgemma.errors import FieldError, require

CHART = Path(__file__).parent / "diffgemma"
GRAFANA = Path(__file__).parents[1] / "triton_repo" / "grafana" / "diffgemma.json"
DASHBOARD = CHART / "dashboards" / GRAFANA.name
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"
REMEDY = "make format"
_TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- end of values -->)", re.DOTALL)
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "seq": "array", "map": "object"}

Schema = dict[str, Any]

_QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"}
_AMOUNT: Schema = {"anyOf": [_QUANTITY, {"type": "number", "minimum": 0}]}
# no GPU: that comes from `gpu`
_AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("cpu", "memory", "ephemeral-storage"), _AMOUNT),
}
_SELECTOR: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array", "items": {"type": "object", "required": ["key", "operator"]}},
    },
}
DEFINITIONS: Schema = {
    "quantity": _QUANTITY,
    # relative, and nowhere above
    "folder": {
        "type": "string",
        "pattern": "^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$",
        "not": {"pattern": r"(^|/)\.\.?(/|$)"},
    },
    "countOrPercent": {
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(100|[0-9]{1,2})%$"}]
    },
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS},
    },
    "networkPeer": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "podSelector": _SELECTOR,
            "namespaceSelector": _SELECTOR,
            "ipBlock": {
                "type": "object",
                "required": ["cidr"],
                "additionalProperties": False,
                "properties": {
                    "cidr": {"type": "string", "minLength": 1},
                    "except": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Value:
    """One documented value.

    Args:
        path: its keys from the top.
        default: what values.yaml says.
        kind: JSON type of the default.
        about: description.
        extra: JSON Schema of its ``@schema`` comment.
    """

    path: tuple[str, ...]
    default: Any
    kind: str
    about: str
    extra: Schema

    @property
    def key(self) -> str:
        """Dotted path."""
        return ".".join(self.path)

    def schema(self) -> Schema:
        """JSON Schema (draft 7) of the value."""
        extra = dict(self.extra)
        # draft 7 ignores what stands beside $ref
        reference = {"allOf": [{"$ref": extra.pop("$ref")}]} if "$ref" in extra else {"type": self.kind}
        return {"description": self.about, "default": self.default, **reference, **extra}

    @property
    def nullable(self) -> bool:
        """Whether null, which takes a default away, is allowed."""
        return "null" in self.extra.get("type", [])


def read_values(path: Path = VALUES) -> list[Value]:
    """The documented values, in the order of the file.

    Raises:
        FieldError: for a value without a description, or an ``@schema`` comment that is no JSON.
    """
    text = path.read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return _values(root, (), yaml.safe_load(text), text.splitlines())


def _values(node: yaml.MappingNode, path: tuple[str, ...], default: Any, lines: list[str]) -> list[Value]:
    found: list[Value] = []
    for key, value in node.value:
        name = (*path, key.value)
        about, extra = _comments(lines, key.start_mark.line, ".".join(name))
        if about:
            kind = _TYPES[value.tag.rpartition(":")[2]]
            found.append(Value(name, default[key.value], kind, about, extra))
            continue
        described = isinstance(value, yaml.MappingNode) and bool(value.value)
        require(
            described,
            field=".".join(name),
            value=default[key.value],
            allowed="a value with a `# --` comment above it",
            fix="describe it",
        )
        found += _values(value, name, default[key.value], lines)
    return found


def _comments(lines: list[str], line: int, key: str) -> tuple[str, Schema]:
    """Description and schema in the comment lines right above ``line``."""
    block: list[str] = []
    while line and lines[line - 1].strip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].strip().removeprefix("#").strip())
    if not any(text.startswith("--") for text in block):
        return "", {}
    start = next(i for i, text in enumerate(block) if text.startswith("--"))
    words = [text.removeprefix("--").strip() for text in block[start:] if not text.startswith("@schema")]
    schema = [text.removeprefix("@schema") for text in block[start:] if text.startswith("@schema")]
    try:
        return " ".join(words), json.loads(schema[0]) if schema else {}
    except ValueError as error:
        raise FieldError(
            field=f"{key}: @schema", value=schema[0], allowed=f"JSON ({error})", fix="correct the comment"
        ) from None


def render_schema(values: list[Value]) -> str:
    """The whole values.schema.json."""
    root: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the diffgemma chart",
        "type": "object",
        "additionalProperties": False,
        "required": [],
        # what a parent chart hands down
        "properties": {"global": {"type": "object", "description": "Values of a parent chart; not used"}},
        "definitions": DEFINITIONS,
    }
    for value in values:
        parent = root
        for name in value.path[:-1]:
            _require(parent, name)
            new: Schema = {"type": "object", "additionalProperties": False, "required": [], "properties": {}}
            parent = parent["properties"].setdefault(name, new)
        parent["properties"][value.path[-1]] = value.schema()
        if not value.nullable:
            _require(parent, value.path[-1])
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


def _require(parent: Schema, name: str) -> None:
    # a default is always there, unless somebody takes it away with null
    if name not in parent["required"]:
        parent["required"].append(name)


def render_readme(values: list[Value], readme: str) -> str:
    """``readme`` with its table of values written anew."""
    rows = ["| value | default | |", "|---|---|---|"]
    for value in values:
        default = json.dumps(value.default, ensure_ascii=False).replace("|", "\\|")
        allowed = ", ".join(f"`{json.dumps(choice)}`" for choice in value.extra.get("enum", []))
        about = value.about + (f" ({allowed})" if allowed else "")
        rows.append(f"| `{value.key}` | `{default}` | {about} |")
    require(
        _TABLE.search(readme) is not None,
        field=str(README),
        value="no markers",
        allowed="<!-- values --> ... <!-- end of values -->",
        fix="add them",
    )
    return _TABLE.sub(lambda _: "\n".join(rows) + "\n", readme)


def rendered() -> dict[Path, str]:
    """What each generated file should hold."""
    values = read_values()
    return {
        SCHEMA: render_schema(values),
        README: render_readme(values, README.read_text()),
        DASHBOARD: GRAFANA.read_text(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Check (or write) the generated files; exit status 1 when one differs."""
    parser = argparse.ArgumentParser(
        prog="python helm/generate.py", description="Schema, README and dashboard of the chart."
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail when a generated file differs")
    action.add_argument("--write", action="store_true", help="write the generated files")
    write = parser.parse_args(arguments).write
    try:
        files = rendered()
        for path, content in files.items():
            if write:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
            same = path.is_file() and path.read_text() == content
            require(same, field=str(path), value="another text", allowed="what it is made from says", fix=REMEDY)
    except FieldError as error:
        print(error, file=sys.stderr)
        return 1
    names = ", ".join(path.name for path in files)
    print(f"{CHART.name}: {len(read_values())} values; {names} as generated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
