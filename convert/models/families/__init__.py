"""Model families, one file each; a family is known once it stands in FAMILIES."""

from ..family import Family
from .gpt2 import GPT2
from .gpt_bigcode import GPT_BIGCODE
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .starcoder2 import STARCODER2

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, GPT_BIGCODE, STARCODER2)
