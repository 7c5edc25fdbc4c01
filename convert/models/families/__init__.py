"""Model families, one file each; a family is known once it stands in FAMILIES."""

from ..family import Family
from .llama import LLAMA
from .mistral import MISTRAL

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL)
