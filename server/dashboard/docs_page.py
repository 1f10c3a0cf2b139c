"""The API's description as one page without a script, made from its OpenAPI: nothing is loaded from anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """\
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid; padding-top: 1rem; font-size: 1.1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
code { font-family: ui-monospace, monospace; }
"""


def docs_page(description: Mapping[str, Any], style: str) -> str:
    """HTML; `style` is the address of the style sheet."""
    title = escape(f"{description['info']['title']} {description['info']['version']}: API")
    schemas = description.get("components", {}).get("schemas", {})
    body = "".join([*_operations(description["paths"]), "<h1>Types</h1>", *_types(schemas)])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="{escape(style)}"></head><body><main><h1>{title}</h1>'
        '<p>The same as <a href="/openapi.json">OpenAPI</a>, for tools.</p>'
        f"{body}</main></body></html>"
    )


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, operation in methods.items():
            yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"
            if rows := [*_parameters(operation), *_body(operation), *_answers(operation)]:
                yield f"<table>{''.join(rows)}</table>"


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    for one in operation.get("parameters", ()):
        needed = "" if one.get("required") else ", optional"
        yield _row(one["name"], f"{one['in']}{needed}: {_type(one.get('schema', {}))}. {one.get('description', '')}")


def _body(operation: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield _row("body", f"{kind}: {_type(content.get('schema', {}))}")


def _answers(operation: Mapping[str, Any]) -> Iterator[str]:
    for status, answer in operation.get("responses", {}).items():
        kinds = [f"{kind} {_type(content.get('schema', {}))}" for kind, content in answer.get("content", {}).items()]
        yield _row(status, ", ".join(kinds) or answer.get("description", ""))


def _types(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f'<h2 id="{escape(name)}"><code>{escape(name)}</code></h2><p>{escape(schema.get("description", ""))}</p>'
        fields = [_row(field, _type(of)) for field, of in schema.get("properties", {}).items()]
        yield f"<table>{''.join(fields)}</table>" if fields else ""


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if reference := schema.get("$ref"):
        return str(reference).rpartition("/")[2]
    if choices := schema.get("enum"):
        return " | ".join(str(choice) for choice in choices)
    if several := schema.get("anyOf"):
        return " | ".join(_type(one) for one in several)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("const", schema.get("type", "any")))


def _row(name: str, words: str) -> str:
    return f'<tr><th scope="row"><code>{escape(name)}</code></th><td>{escape(words)}</td></tr>'
