"""The rulebook, a chapter per family of operations. Each chapter is a table: `primitive: rule`."""

from fbp.core import Rulebook
from fbp.rules import calls, elementwise, loops

RULES = Rulebook(calls.RULES | loops.RULES | elementwise.RULES)
