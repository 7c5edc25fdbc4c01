"""ModelOpt's configuration, in hf_quant_config.json or in its copy inside config.json."""

from __future__ import annotations

from functools import cached_property

from ..files.reader import Reader
from ..sources.readymade.names import Holds, names, shell
from .findings import Findings, misreads
from .folder import MODELOPT_FILE, Folder
from .layouts import Faults, Layout, faults, modelopt_layout

# Of 4 bits, by blocks or mixed: known to some of these runtimes, written by no converter here, and not tried.
NOT_TRIED = ("FP4", "MX", "MIXED", "FP8_PB_WO", "FP8_BLOCK")


class Modelopt:
    """What one of the two files says.

    Attributes:
        algo: quant_algo; empty where none is stated.
        group: input channels that share a scale, as stated.
    """

    def __init__(self, folder: Folder, said: Reader):
        self.folder, self.said = folder, said
        self.algo = (said.text_or_none("quant_algo") or "").upper()
        self.group = said.integer_or_none("group_size")

    @property
    def title(self) -> str:
        return f"ModelOpt, {self.algo or 'no quant_algo'}"

    @property
    def tried(self) -> bool:
        return not any(part in self.algo for part in NOT_TRIED)

    @property
    def layout(self) -> Layout | None:
        return modelopt_layout(self.algo, self.group)

    @cached_property
    def faults(self) -> Faults:
        return Faults() if self.layout is None else faults(self.folder.linears, self.layout)

    @cached_property
    def listed(self) -> list[str]:
        """What it lists as left in floating point."""
        return names(self.said, "exclude_modules" if self.said.has("exclude_modules") else "ignore")

    @cached_property
    def holds(self) -> Holds:
        """Whether its list leaves a module in floating point, as ModelOpt means it."""
        self.folder.check_tries(self.said, "exclude_modules", [entry for entry in self.listed if "*" in entry])
        return shell(self.listed, self.said.file, "exclude_modules")

    @cached_property
    def outside(self) -> set[str]:
        """The linears that it leaves in floating point."""
        return {linear.name for linear in [*self.folder.linears, *self.folder.plain] if self.holds(linear.name)}

    @property
    def forgotten(self) -> list[str]:
        """What is in floating point, and not listed."""
        head = [] if self.holds("lm_head") or "lm_head" in self.folder.linear_names else ["lm_head"]
        return [linear.name for linear in self.folder.plain if linear.name not in self.outside] + head


def in_config(folder: Folder) -> Modelopt | None:
    """What config.json says."""
    stated = folder.method.startswith("modelopt") or folder.embedded.has("quant_algo")
    return Modelopt(folder, folder.embedded) if stated else None


def in_file(folder: Folder) -> Modelopt | None:
    """What hf_quant_config.json says, else config.json: Edge-LLM and TensorRT-LLM look in this order."""
    return in_config(folder) if folder.beside is None else Modelopt(folder, folder.beside)


def led_astray(folder: Folder, who: str) -> Findings:
    """hf_quant_config.json beside a configuration that says otherwise."""
    inside = in_config(folder)
    if folder.beside is None or (inside is None and not folder.method):
        return
    stated = Modelopt(folder, folder.beside)
    if inside is None:
        yield misreads(f"{MODELOPT_FILE}: {who} follows it, and not config.json's {folder.method}; remove the file")
    elif inside.algo != stated.algo:
        yield misreads(f"{MODELOPT_FILE}: {who} follows its {stated.algo}; config.json says {inside.algo}; correct one")
