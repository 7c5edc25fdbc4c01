"""Files opened once, and safetensors files: read as they are, or refused in one line."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from enginesmith.convert.errors import InputError
from enginesmith.convert.files.pinned import Pinned
from enginesmith.convert.files.shard import Shard

TENSORS = {
    "half": torch.randn(3, 4).half(),
    "wide": torch.randn(5, 2).bfloat16(),
    "eight": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "whole": torch.arange(6, dtype=torch.int32).view(2, 3),
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 7),
    "flags": torch.tensor([True, False]),
}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header (JSON, or bytes as they are) and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def opened(path: Path) -> Shard | None:
    """None where it is refused, in one short line."""
    message = ""
    try:
        return Shard(path)
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 400
    return None


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_safetensors_wrote_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt"})
    shard = Shard(tmp_path / "a.safetensors")
    assert shard.metadata == {"format": "pt"}
    assert shard.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = shard.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.float(), tensor.float())
    with pytest.raises(InputError, match=r"a\.safetensors: tensor 'other' is not there"):
        shard.read("other")


DUPLICATE = b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)
MALFORMED = {
    "a name twice": (DUPLICATE, b"x" * 8, "'a' is given twice"),
    "not an object": ([entry()], b"x" * 8, "its header is no object"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not a whole safetensors file"),
    "NaN": (b'{"a": NaN}', b"", "NaN is no number"),
    "no JSON": (b"{", b"", "not a whole safetensors file"),
    "nested without end": (b"[" * 100_000, b"", "not a whole safetensors file"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "its metadata are no texts"),
    "an entry": ({"a": 1}, b"", "has not dtype, shape and data_offsets"),
    "another key": ({"a": {**entry(), "more": 1}}, b"x" * 8, "has not dtype, shape and data_offsets"),
    "dtype": ({"a": entry("F128")}, b"x" * 8, "is of dtype 'F128'"),
    "dtype of another type": ({"a": entry(["F32"])}, b"x" * 8, "is of dtype"),
    "negative": ({"a": entry(shape=[-2])}, b"x" * 8, "no sizes"),
    "a flag for a size": ({"a": entry(shape=[True, 2])}, b"x" * 8, "no sizes"),
    "a float for a size": ({"a": entry(shape=[2.0])}, b"x" * 8, "no sizes"),
    "offsets": ({"a": entry(offsets=[0, 8, 8])}, b"x" * 8, "no sizes"),
    "backwards": ({"a": entry(offsets=[8, 0])}, b"x" * 8, "is not as large as its shape"),
    "too large": ({"a": entry(shape=[3])}, b"x" * 8, "is not as large as its shape"),
    "a product beyond 64 bits": ({"a": entry(shape=[2**62, 2**62, 4])}, b"x" * 8, "is not as large as its shape"),
    "half a byte": ({"a": entry("F4", [3], [0, 1])}, b"x", "is not as large as its shape"),
    "a gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, b"x" * 20, "leaves a gap or overlaps"),
    "an overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, b"x" * 12, "leaves a gap or overlaps"),
    "the same place": ({"a": entry(), "b": entry()}, b"x" * 8, "leaves a gap or overlaps"),
    "beyond the end": ({"a": entry(shape=[20], offsets=[0, 80])}, b"x" * 8, "its tensors end at byte"),
    "more behind": ({"a": entry()}, b"x" * 9, "its tensors end at byte"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    header, data, words = MALFORMED[case]
    with pytest.raises(InputError) as refused:
        Shard(write(tmp_path / "a.safetensors", header, data))
    assert str(refused.value).startswith("a.safetensors: not a whole safetensors file (")
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("length", [2**63, 2**40, 100])
def test_a_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"its header would have {length} bytes"):
        Shard(write(tmp_path / "a.safetensors", {}, length=length))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_accepted_is_what_safetensors_accepts(tmp_path: Path, data: st.DataObject) -> None:
    """Mutated headers: never an exception but InputError, never more permissive than the library, equal contents."""
    path = tmp_path / "a.safetensors"
    number = st.one_of(st.integers(-1, 24), st.sampled_from([2**31, 2**63, 2**64, 2.0, True, None, "8"]))
    one = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "U8", "F8_E4M3", "I64", "BOGUS", 1]),
            "shape": st.lists(number, max_size=3),
            "data_offsets": st.lists(number, min_size=1, max_size=3),
        }
    )
    good = st.sampled_from([entry(), entry("F16", [4], [0, 8]), entry(offsets=[8, 16]), entry("U8", [0], [8, 8])])
    header = data.draw(st.dictionaries(st.text(max_size=3), st.one_of(good, good, one), max_size=3))
    write(path, header, bytes(data.draw(st.sampled_from([0, 8, 16, 24]))))
    shard = opened(path)
    if shard is None:
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == shard.tensors.keys()
        for name, stored in shard.tensors.items():
            assert file.get_slice(name).get_shape() == stored.shape
            assert math.prod(stored.shape) * file.get_tensor(name).element_size() == stored.size
            assert torch.equal(file.get_tensor(name).float(), shard.read(name).float())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_byte_changed(tmp_path: Path, place: int, value: int, cut: bool) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] = value
    path.write_bytes(content[:place] if cut else content)
    shard = opened(path)
    if shard is None:
        return
    try:
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == shard.tensors.keys()
    except SafetensorError as error:
        pytest.fail(f"the library refuses what is accepted here: {error}")


def test_descriptors_are_closed_with_the_last_reference(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    before = len(os.listdir("/proc/self/fd"))
    shards = [Shard(tmp_path / "a.safetensors") for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    shards[0].close()
    del shards
    for _ in range(3):
        with pytest.raises(InputError):
            Shard(write(tmp_path / "b.safetensors", {"a": 1}))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "# xet version 0\n"])
def test_a_pointer_is_not_the_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text(content)
    with pytest.raises(InputError, match=r"model\.safetensors: a pointer that git left .* run git lfs pull"):
        Shard(tmp_path / "model.safetensors")


def cut(path: Path) -> None:
    os.truncate(path, 10)


def written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 0))


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_bytes(bytes(100))
    file = Pinned(tmp_path / "file")
    with pytest.raises(InputError, match=r"^file: larger than the .* MiB that such a file may have"):
        file.text(largest=99)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(InputError, match=r"^file: cannot be read \(Input/output error\)"):
        file.text()


def test_a_file_whose_folder_was_moved(tmp_path: Path) -> None:
    """What is open is what it was, but the path does not lead to it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(bytes(100))
    file = Pinned(tmp_path / "folder" / "file")
    (tmp_path / "folder").rename(tmp_path / "moved")
    assert file.read(0, 100) == bytes(100)
    with pytest.raises(InputError, match=r"^file: was removed or replaced while it was read"):
        file.check_unchanged()


@pytest.mark.parametrize("change", [cut, written_to, removed, replaced])
def test_a_file_that_changes_is_refused(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    os.utime(path, ns=(10**18, 10**18))
    file = Pinned(path)
    digest = file.sha256()
    assert file.is_current()
    file.check_unchanged()
    change(path)
    for act in (file.check_unchanged, file.sha256, lambda: file.read(0, 100_000)):
        with pytest.raises(InputError, match=r"^file: (changed|was removed or replaced|was cut) while it was read"):
            act()
    assert not file.is_current()
    assert len(digest) == 64


def test_a_file_that_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    file = Pinned(path)
    path.unlink()
    with pytest.raises(InputError, match="file: was removed or replaced while it was read"):
        file.check_same()


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_a_header(size: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(size))
    with pytest.raises(InputError, match="shorter than a header"):
        Shard(tmp_path / "x.safetensors")
