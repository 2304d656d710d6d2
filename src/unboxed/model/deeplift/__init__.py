"""DeepLIFT's multipliers, which replace each op's gradient between a baseline and an example.

A rule of DeepLIFT moves in here; the method itself is `attribution.deep_lift`.
"""

from .reference_run import ReferenceTape as ReferenceTape
from .reference_run import check_all_ruled as check_all_ruled
from .rules import RULES as RULES
