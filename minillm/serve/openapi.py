"""GET /openapi.json: all routes, and the fields that their bodies have, made of the structs that read them. The forms
of messages, tools and schemas inside are checked by hand, and not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

import minillm
from minillm.serve.fields import Body

REF = "#/components/schemas/{name}"


def document(routes: Sequence[tuple[str, str, Any]], bodies: Mapping[str, type[Body]]) -> dict[str, Any]:
    """The document of these routes (method, path, handler); `bodies` are those of POST by path."""
    kinds = [bodies[path] for method, path, _ in routes if method == "POST"]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    by_path = dict(zip([path for method, path, _ in routes if method == "POST"], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in routes:
        made: dict[str, Any] = {
            "operationId": f"{handler.__module__.rpartition('.')[2]}_{handler.__name__}",
            "responses": {"200": {"description": "done"}, "default": {"description": "refused: the body says why"}},
        }
        if "{name:path}" in path:
            made["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        if method == "POST":
            idle = bodies[path].IDLE
            made["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_path[path]}}}
            made["description"] = f"accepted without effect: {', '.join(idle) or 'nothing'}"
        paths.setdefault(path.replace("{name:path}", "{name}"), {})[method.lower()] = made
    return {
        "openapi": "3.1.0",
        "info": {"title": "minillm", "version": minillm.__version__},
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
