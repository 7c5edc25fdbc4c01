"""Which statistics of a layer an algorithm reads: said before any is gathered."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Wanted:
    """What an algorithm reads.

    Attributes:
        tokens: a sample of whole input rows, with the ranges.
        gram: Gram matrices.
        magnitude: the mean |x| of each channel.
        ranges: the largest |x| of each channel.
        outputs: the largest |output| of each linear's channels, and of what each norm reads.
        cache: ranges of keys and values, and of the queries that meet them.
    """

    tokens: bool = False
    gram: bool = False
    magnitude: bool = False
    ranges: bool = False
    outputs: bool = False
    cache: bool = False

    @property
    def inputs(self) -> bool:
        return self.tokens or self.gram or self.magnitude or self.ranges

    def __or__(self, other: Wanted) -> Wanted:
        """What either of two algorithms reads."""
        mine, theirs = asdict(self), asdict(other)
        return Wanted(**{name: mine[name] or theirs[name] for name in mine})

    def lacks(self, other: Wanted) -> list[str]:
        """What the other wants beyond this."""
        mine, theirs = asdict(self), asdict(other)
        return [name for name in mine if theirs[name] and not mine[name]]


EVERYTHING = Wanted(tokens=True, gram=True, magnitude=True, ranges=True, outputs=True, cache=True)
