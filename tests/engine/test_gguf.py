"""The GGUF header reader, against honest and hostile files."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import BadModelFile
from engine.gguf import read_header
from tests.engine import tiny_gguf as tiny


def read(tmp_path: Path, data: bytes) -> object:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_header(path)


def test_header_tells_what_the_model_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny.gguf())
    header = read_header(path)
    assert (header.architecture, header.quantization, header.context_length) == ("llama", "Q4_K_M", 2048)
    assert header.chat_template == tiny.TEMPLATE
    assert (header.n_tensors, header.n_parameters) == (1, 8)
    assert "tokenizer.ggml.tokens" not in header.metadata


HOSTILE = {
    "empty": (b"", "ends inside"),
    "another kind of file": (b"PK\x03\x04" + b"\0" * 100, "not a GGUF model"),
    "version 1": (tiny.gguf(version=1), "version 1 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is not supported"),
    "more keys than bytes": (tiny.gguf(n_values=9_999), "metadata key 6"),
    "a huge number of keys": (tiny.gguf(n_values=1 << 60), "at most 10000"),
    "a huge number of tensors": (tiny.gguf(n_tensors=1 << 60), "at most 100000"),
    "a string longer than the file": (
        tiny.gguf([tiny.string("k") + struct.pack("<IQ", 8, 1 << 19)]),
        "ends inside k",
    ),
    "a string of exabytes": (tiny.gguf([tiny.string("k") + struct.pack("<IQ", 8, 1 << 60)]), "at most"),
    "an array of exabytes": (tiny.gguf([tiny.string("k") + struct.pack("<IIQ", 9, 12, 1 << 60)]), "at most"),
    "an array longer than the file": (
        tiny.gguf([tiny.string("k") + struct.pack("<IIQ", 9, 12, 1 << 20)]),
        "ends inside",
    ),
    "an array of arrays": (tiny.gguf([tiny.string("k") + struct.pack("<IIQ", 9, 9, 1)]), "unsupported type 9"),
    "an unknown type": (tiny.gguf([tiny.string("k") + struct.pack("<I", 99)]), "unknown type 99"),
    "a key twice": (tiny.gguf([tiny.number_value("k", 1)] * 2), "'k' occurs twice"),
    "text that is not UTF-8": (tiny.gguf([tiny.text_value("k", b"\xff\xfe")]), "not valid UTF-8"),
    "no architecture": (tiny.gguf([tiny.number_value("k", 1)]), "general.architecture is missing"),
    "alignment of zero": (
        tiny.gguf([*tiny.default_values(), tiny.number_value("general.alignment", 0)]),
        "a power of two",
    ),
    "a tensor without dimensions": (tiny.gguf(tensors=[tiny.tensor("w", ())]), "0 dimensions"),
    "a tensor with nine dimensions": (tiny.gguf(tensors=[tiny.tensor("w", (1,) * 9)]), "9 dimensions"),
    "a tensor whose size overflows": (tiny.gguf(tensors=[tiny.tensor("w", (1 << 40, 1 << 40))]), "elements"),
    "a tensor of size zero": (tiny.gguf(tensors=[tiny.tensor("w", (0,))]), "0 elements"),
    "a tensor behind the end": (tiny.gguf(tensors=[tiny.tensor("w", offset=1 << 30)]), "cut short"),
    "a tensor at an odd offset": (tiny.gguf(tensors=[tiny.tensor("w", offset=3)]), "not aligned"),
    "a tensor twice": (tiny.gguf(tensors=[tiny.tensor("w")] * 2), "'w' occurs twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.sec("SEC-099")
def test_hostile_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(BadModelFile, match=reason):
        read(tmp_path, data)


@pytest.mark.sec("SEC-099")
def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tiny.gguf(data=b"")
    for length in range(len(whole)):
        with pytest.raises(BadModelFile):
            read(tmp_path, whole[:length])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=r"nowhere\.gguf"):
        read_header(tmp_path / "nowhere.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.sec("SEC-099")
def test_random_damage_is_read_or_refused_but_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    broken = bytearray(tiny.gguf())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(broken) - 1))
        broken[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadModelFile):
        read(tmp_path, bytes(broken))
