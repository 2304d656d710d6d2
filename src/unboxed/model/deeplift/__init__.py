"""DeepLIFT's multipliers, which replace each op's gradient between a baseline and an example.

A rule of DeepLIFT moves in here; the method itself is `attribution.deep_lift`.
"""

from .reference_run import ReferenceTape as ReferenceTape
from .reference_run import check_every_op_has_rule as check_every_op_has_rule
from .rules import RULE_BY_OP_NAME as RULE_BY_OP_NAME
