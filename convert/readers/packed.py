"""GPTQ's configuration inside config.json."""

from __future__ import annotations

from .folder import Folder


class Gptq:
    """What config.json says of a folder of GPTQ's format.

    Attributes:
        reordered: channels are in groups by activation.
        symmetric: it says that there are no zero points.
    """

    def __init__(self, folder: Folder):
        self.folder, said = folder, folder.embedded
        self.bits = said.integer("bits")
        self.group = said.integer("group_size", -1, least=-1)
        self.reordered = said.flag("desc_act")
        self.symmetric = said.flag("sym", True)

    @property
    def title(self) -> str:
        groups = "whole rows" if self.group == -1 else f"groups of {self.group}"
        return f"gptq, {self.bits} bits, {groups}, {'symmetric' if self.symmetric else 'asymmetric'}"
