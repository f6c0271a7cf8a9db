"""The rulebook, a chapter per family of operations. Each chapter is a table: `primitive: rule`."""

from fbp.core import Rulebook
from fbp.rules import (
    bounded,
    calls,
    choices,
    collectives,
    convolutions,
    elementwise,
    foreign,
    fourier,
    hijax,
    indexing,
    linalg,
    loops,
    ordering,
    products,
    reductions,
    remat,
    shapes,
    shard_map,
    special,
    windows,
)

RULES = Rulebook(
    elementwise.RULES
    | special.RULES
    | reductions.RULES
    | ordering.RULES
    | shapes.RULES
    | indexing.RULES
    | windows.RULES
    | products.RULES
    | convolutions.RULES
    | linalg.RULES
    | fourier.RULES
    | calls.RULES
    | remat.RULES
    | loops.RULES
    | bounded.RULES
    | collectives.RULES
    | shard_map.RULES
    | hijax.RULES,
    otherwise=foreign.borrowed,
).recomputing(choices.CHEAP)
