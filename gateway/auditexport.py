"""Audit records in the formats that other programs collect: JSON lines, CEF, and the OpenTelemetry log format in JSON.

Pure: records in, lines out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from gateway import __version__

_BAD: Final = {
    "denied": 7,
    "limited": 5,
    "unknown": 5,
    "kept_back": 5,
    "upstream": 5,
    "error": 4,
    "tool_error": 3,
    "cancelled": 3,
}
"""How severe an outcome is, from 0 to 10, as CEF counts; 2 for the others."""
_CEF: Final[Mapping[str, str]] = {
    "call": "externalId", "principal": "suser", "client": "sourceServiceName", "server": "dhost", "method": "act",
    "outcome": "outcome", "detail": "msg", "bytes": "out", "arguments": "fileHash", "profile": "cs1", "item": "cs2",
    "policies": "cs3", "tool_digest": "cs4", "approval": "cs5", "by": "duser",
}  # fmt: skip
_LABELS: Final = {"cs1": "profile", "cs2": "item", "cs3": "policies", "cs4": "toolDigest", "cs5": "approval"}


def json_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The records themselves."""
    for record in records:
        yield msgspec.json.encode(record).decode()


def cef(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """ArcSight's Common Event Format, version 0: a line a record."""
    for record in records:
        kind = "start" if record.get("event") == "start" else str(record.get("outcome") or record.get("step", ""))
        parts = [f"rt={int(record['at'] * 1000)}"]
        for name, key in _CEF.items():
            value = record.get(name)
            if value not in (None, "", [], 0):
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                parts.append(f"{key}={_escaped(text)}")
                if key in _LABELS:
                    parts.append(f"{key}Label={_LABELS[key]}")
        if source := _source(str(record.get("source", ""))):
            parts.append(source)
        head = "|".join(_head(text) for text in ("Lockgate", "Lockgate", __version__, record["method"], kind))
        yield f"CEF:0|{head}|{_BAD.get(kind, 2)}|{' '.join(parts)}"


def _source(address: str) -> str:
    """The caller's address; CEF has a key of its own for each version."""
    try:
        version = ip_address(address).version
    except ValueError:
        return ""
    return f"src={address}" if version == 4 else f"c6a2={_escaped(address)} c6a2Label=Source IPv6 Address"


def otlp(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """OpenTelemetry's `LogsData` in its JSON form, a line for each thousand records, as its file exporter writes it."""
    some: list[dict[str, Any]] = []
    for record in records:
        some.append(_log_record(record))
        if len(some) == 1000:
            yield _logs_data(some)
            some = []
    if some:
        yield _logs_data(some)


FORMATS: Final[Mapping[str, Callable[[Iterable[Mapping[str, Any]]], Iterator[str]]]] = {
    "jsonl": json_lines,
    "cef": cef,
    "otlp": otlp,
}


def _log_record(record: Mapping[str, Any]) -> dict[str, Any]:
    bad = _BAD.get(str(record.get("outcome")), 2) >= 5
    what = record.get("outcome") or record.get("step") or record.get("event", "")
    return {
        "timeUnixNano": str(int(record["at"] * 1000) * 1_000_000),
        "severityNumber": 13 if bad else 9,
        "severityText": "WARN" if bad else "INFO",
        "body": {"stringValue": f"{record['method']} {what}"},
        "attributes": [
            {"key": f"lockgate.{name}", "value": _value(value)}
            for name, value in record.items()
            if name != "at" and value not in ("", [], None)
        ],
    }


def _value(value: object) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_value(one) for one in value]}}
        case dict():
            members = [{"key": name, "value": _value(one)} for name, one in value.items() if one is not None]
            return {"kvlistValue": {"values": members}}
    return {"stringValue": str(value)}


def _logs_data(records: list[dict[str, Any]]) -> str:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "lockgate"}}]}
    scope = {"name": "lockgate.audit", "version": __version__}
    data = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": records}]}]}
    return msgspec.json.encode(data).decode()


def _head(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("=", "\\=").replace("\r", "\\r").replace("\n", "\\n")
    return _one_line(escaped)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
