"""The text that a conversion or a comparison calibrates on."""

from __future__ import annotations

from ..models.model import Model
from ..sources.folder import Source
from ..sources.text import Tokens, check_length, check_text, read_tokens
from .options import ConvertOptions


def check_calibration(options: ConvertOptions, model: Model | None) -> None:
    """Raise InputError for a text that is not there, or sequences longer than those of the model that reads them."""
    if model is not None:
        check_length(model, options.calib_seq_len, "--calib_seq_len")
    check_text(options.calib, options.calib_size, options.calib_seq_len, "--calib")


def read_calibration(options: ConvertOptions, source: Source) -> Tokens:
    """The calibration tokens.

    Raises:
        InputError: a text that cannot be used.
    """
    size, length, vocabulary = options.calib_size, options.calib_seq_len, source.model.vocab_size
    return read_tokens(options.calib, source.folder, size, length, vocabulary, "--calib")
