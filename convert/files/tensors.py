"""A safetensors file laid out at once and filled tensor by tensor."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .behind import Behind
from .disk import DTYPE_NAMES, ITEM_SIZE


class TensorFile:
    """A safetensors file laid out at once and filled tensor by tensor, in any order.

    Args:
        path: the file to create.
        tensors: name -> (shape, dtype) of everything it will hold.
        metadata: what its header says besides.
        flag: the option that asked for the file, for error messages.
        room: claim the disk space at once; else the file is a hole that takes none.
    """

    def __init__(
        self,
        path: Path,
        tensors: dict[str, tuple[list[int], str]],
        metadata: dict[str, str] | None = None,
        flag: str = "--output_dir",
        room: bool = True,
    ):
        self.path, self.tensors = path, tensors
        self.missing = set(tensors)
        self.offset: dict[str, int] = {}
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        position = 0
        for name in sorted(tensors, key=lambda name: (-ITEM_SIZE[tensors[name][1]], name)):
            shape, dtype = tensors[name]
            end = position + ITEM_SIZE[dtype] * prod(shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [position, end]}
            self.offset[name], position = position, end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.start, self.flag = 8 + len(text), flag
        self.size = self.start + position
        self.file = path.open("wb")
        if room:
            reserve(self.file.fileno(), self.size, path, flag)
        else:
            os.ftruncate(self.file.fileno(), self.size)
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.behind: Behind | None = None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store one tensor; shape and dtype must be the declared ones."""
        shape, dtype = self.tensors[name]
        if list(tensor.shape) != shape:
            raise AssertionError(f"{name}: {list(tensor.shape)} {tensor.dtype}, declared {shape} {dtype}")
        self.fill(name, [tensor])

    def fill(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Store one tensor piece by piece, in the order of its elements."""
        shape, dtype = self.tensors[name]
        at, left = self.start + self.offset[name], prod(shape)
        self.file.seek(at)
        for piece in pieces:
            if piece.dtype != getattr(torch, dtype) or piece.numel() > left:
                raise AssertionError(f"{name}: {list(piece.shape)} {piece.dtype}, declared {shape} {dtype}")
            piece = piece.detach().contiguous()
            if piece.is_cuda:
                self.behind = self.behind or Behind(self.file.fileno())
                self.behind.put(piece, at)
            else:
                self.file.write(piece.view(-1).view(torch.uint8).numpy().data)
            at += piece.nbytes
            left -= piece.numel()
        if left:
            raise AssertionError(f"{name}: {left} elements are lacking")
        self.check_whole()
        self.missing.discard(name)

    def check_whole(self) -> os.stat_result:
        """Its status; InputError if someone has cut it, or removed its name."""
        status = os.fstat(self.file.fileno())
        if status.st_size != self.size or not status.st_nlink:
            raise InputError(f"{self.flag}: {self.path.name}: was cut or removed while it was written; start again")
        return status

    def close(self) -> os.stat_result:
        """Its status, complete."""
        if self.behind is not None:
            self.behind.drain()
        self.file.flush()
        status = self.check_whole()
        self.abandon()
        if self.missing:
            raise AssertionError(f"{self.path.name}: never written: {sorted(self.missing)[:3]}")
        return status

    def abandon(self) -> None:
        """Close it, whatever it lacks."""
        if self.behind is not None:
            self.behind.end()
        self.file.close()


def reserve(descriptor: int, size: int, path: Path, flag: str = "--output_dir") -> None:
    """Claim the disk space of a whole file now, so that a full disk is known before any work."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            os.ftruncate(descriptor, size)
            return
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{flag}: no room for {path.name}: {size / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free "
            f"({error.strerror})"
        ) from None


def prod(shape: list[int]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
