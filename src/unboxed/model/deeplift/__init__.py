"""DeepLIFT's multipliers: what stands for each op's gradient between a baseline and an example.

A rule of DeepLIFT moves in here; the method itself is `attribution.deep_lift`.
"""

from .reference_run import Tape as Tape
from .reference_run import nothing_escaped as nothing_escaped
from .rules import RULES as RULES
