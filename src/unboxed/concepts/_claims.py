"""What a result may claim: a grade, with one sentence that says which figure it follows from."""

from __future__ import annotations

from typing import Final, Literal

ClaimGrade = Literal["pass", "fail", "not tested"]
PASS: Final = "pass"
FAIL: Final = "fail"
NOT_TESTED_CLAIM: Final = "not tested"
