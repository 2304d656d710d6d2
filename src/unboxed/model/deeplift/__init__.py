"""DeepLIFT's multipliers: what stands for each op's gradient between a baseline and an example."""

from .reference_run import Tape as Tape
from .reference_run import nothing_escaped as nothing_escaped
from .rules import RULES as RULES
