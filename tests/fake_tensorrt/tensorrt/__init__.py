"""A stand-in for TensorRT: its data types, as much as describing plugins needs. See ``plugin``."""

from enum import Enum


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BF16 = 7


float32, float16, int8, int32, bfloat16 = DataType
