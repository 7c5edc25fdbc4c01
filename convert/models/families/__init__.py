"""Model families, one file each; a family is known once it stands in FAMILIES."""

from ..family import Family
from .baichuan import BAICHUAN
from .bert import BERT, ENCODERS
from .bloom import BLOOM
from .chatglm import CHATGLM
from .cohere import COHERE
from .dbrx import DBRX
from .exaone import EXAONE
from .falcon import FALCON
from .gemma import GEMMA
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3
from .gpt2 import GPT2
from .gpt_bigcode import GPT_BIGCODE
from .gpt_neox import GPT_NEOX
from .gptj import GPTJ
from .granite import GRANITE
from .internlm import INTERNLM
from .internlm2 import INTERNLM2
from .llama import LLAMA
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .mpt import MPT
from .nemotron import NEMOTRON
from .opt import OPT
from .phi import PHI
from .phi3 import PHI3, PHI4_MINI
from .qwen import QWEN
from .qwen2 import QWEN2
from .qwen2_classification import QWEN2_CLASSIFICATION
from .qwen2_moe import QWEN2_MOE
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .starcoder2 import STARCODER2

# In the order in which they are listed.
FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN,
    QWEN2,
    QWEN2_CLASSIFICATION,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    DBRX,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    PHI4_MINI,
    GRANITE,
    INTERNLM,
    INTERNLM2,
    *BAICHUAN,
    EXAONE,
    *CHATGLM,
    GPT2,
    GPT_BIGCODE,
    STARCODER2,
    OPT,
    BLOOM,
    GPT_NEOX,
    GPTJ,
    PHI,
    *FALCON,
    MPT,
    NEMOTRON,
    *COHERE,
    *ENCODERS,
)

# Real weights that were converted and measured (benchmarks/README.md), by a family's title.
TESTED: dict[str, tuple[str, ...]] = {
    LLAMA.title: ("SmolLM2-135M",),
    GEMMA3.title: ("Gemma-3-270M",),
    BERT.title: ("all-MiniLM-L6-v2",),
}
