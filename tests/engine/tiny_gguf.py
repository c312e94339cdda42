"""GGUF files of a few hundred bytes: valid ones, and the pieces to build broken ones from.

Knows the layout of version 3; nothing in them can be computed with."""

import struct

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def text_value(key: str, value: str | bytes) -> bytes:
    return string(key) + struct.pack("<I", 8) + string(value)


def number_value(key: str, value: int) -> bytes:
    return string(key) + struct.pack("<II", 4, value)


def array_value(key: str, items: list[str]) -> bytes:
    return string(key) + struct.pack("<IIQ", 9, 8, len(items)) + b"".join(map(string, items))


def tensor(name: str, shape: tuple[int, ...] = (4, 2), offset: int = 0) -> bytes:
    dimensions = b"".join(struct.pack("<Q", n) for n in shape)
    return string(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", 0, offset)


def default_values() -> list[bytes]:
    return [
        text_value("general.architecture", "llama"),
        number_value("general.file_type", 15),
        number_value("llama.context_length", 2048),
        text_value("tokenizer.chat_template", TEMPLATE),
        array_value("tokenizer.ggml.tokens", ["a", "b", "c"]),
    ]


def gguf(
    values: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_values: int | None = None,
    data: bytes = b"\0" * 64,
) -> bytes:
    values = default_values() if values is None else values
    tensors = [tensor("weights")] if tensors is None else tensors
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_values = len(values) if n_values is None else n_values
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + b"".join(values) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data
