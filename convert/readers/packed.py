"""GPTQ's and AWQ's formats: their configuration inside config.json, and the tensors that it implies."""

from __future__ import annotations

from .folder import FLOATS, Folder
from .layouts import INPUTS, MATRIX, WORDS, Layout, Wanted

GPTQ, AWQ = "gptq", "awq"
WHOLE_ROW = -1


class Packed:
    """What config.json says of a folder of one of these formats.

    Attributes:
        group: input channels that share a scale, or WHOLE_ROW.
        reordered: channels are in groups by activation.
        symmetric: it says that there are no zero points.
    """

    def __init__(self, folder: Folder):
        self.folder, self.said = folder, folder.embedded
        self.method = folder.method
        self.bits = self.said.integer("w_bit" if self.said.has("w_bit") else "bits", largest=32)
        self.group = self.said.integer("q_group_size" if self.said.has("q_group_size") else "group_size", WHOLE_ROW, -1)
        self.reordered = self.said.flag("desc_act")
        self.symmetric = self.said.flag("sym", not self.said.flag("zero_point", self.method == AWQ))

    @property
    def title(self) -> str:
        groups = "whole rows" if self.group == WHOLE_ROW else f"groups of {self.group}"
        return f"{self.method}, {self.bits} bits, {groups}, {'symmetric' if self.symmetric else 'asymmetric'}"

    @property
    def layout(self) -> Layout:
        """The tensors of a linear: words of several rows each in GPTQ's format, of several columns in AWQ's."""
        integers, matrix = Wanted((WORDS,), MATRIX), Wanted(FLOATS, MATRIX)
        tensors, per_word = {"qweight": integers, "qzeros": integers, "scales": matrix}, 32 // self.bits
        if self.method == AWQ:
            return Layout(tensors, "qweight", lambda shape: (shape[1] * per_word, shape[0]))
        tensors["g_idx"] = Wanted((WORDS,), INPUTS, optional=True)
        return Layout(tensors, "qweight", lambda shape: (shape[1], shape[0] * per_word))


def packed(folder: Folder) -> Packed | None:
    return Packed(folder) if folder.method in (GPTQ, AWQ) else None
