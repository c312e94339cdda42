"""Bodies of requests here: small forms and JSON, each field at most once.

Knows their shape only."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from gateway.boundedbody import body_within

MAX_BODY_BYTES: Final = 64 * 1024


class FormRefused(Exception):
    """A body or query that means two things, or is no form at all."""


async def body_of(request: Request) -> bytes:
    """
    Raises:
        FormRefused: it is too large.
    """
    if (body := await body_within(request, MAX_BODY_BYTES)) is None:
        raise FormRefused("the body is too large")
    return body


async def form_of(request: Request) -> dict[str, str]:
    """
    Raises:
        FormRefused: it is no form, or a field stands in it twice.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise FormRefused("Content-Type must be application/x-www-form-urlencoded")
    return _once((await body_of(request)).decode("latin-1"))


def query_of(request: Request) -> dict[str, str]:
    """
    Raises:
        FormRefused: a field stands in it twice.
    """
    return _once(request.url.query)


async def json_of(request: Request) -> Any:
    """
    Raises:
        FormRefused: it is no JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise FormRefused("Content-Type must be application/json")
    try:
        return json.loads(await body_of(request))
    except (ValueError, RecursionError) as exc:
        raise FormRefused("the body is not JSON") from exc


def _once(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError as exc:
        raise FormRefused("this is no form") from exc
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FormRefused("a field stands there twice")
    return {name: value for name, value in found.items() if value}
