"""What a verdict on scores of training examples was made from."""

from __future__ import annotations

from dataclasses import dataclass

from ..influence import Influence
from ..influence.validate import LinearDatamodelingScore


@dataclass(frozen=True, eq=False)
class InfluenceEvidence:
    """What a verdict on scores of training examples was made from, for its figures."""

    result: Influence
    retraining: LinearDatamodelingScore | None  # None where nothing was retrained
