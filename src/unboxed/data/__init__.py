from .sets import Batch as Batch
from .uci import digits as digits
