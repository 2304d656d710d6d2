"""DeepLIFT's multipliers: what stands for each op's gradient between a baseline and an example."""

from .rules import RULES as RULES
from .tape import Tape as Tape
from .tape import nothing_escaped as nothing_escaped
