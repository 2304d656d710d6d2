"""Is it true? Scores of training examples against what really happens when these are left out.

What compares scores with retraining, or measures how well they could agree at best, moves in here.
"""

from .agreement import Agreement as Agreement
from .lds import linear_datamodeling_score as linear_datamodeling_score
from .lds_result import LinearDatamodelingScore as LinearDatamodelingScore
from .lds_result import pool_scores as pool_scores
from .leave_one_out import LeaveOneOut as LeaveOneOut
from .leave_one_out import leave_one_out as leave_one_out
