"""How robust is it? Accuracy under attacks and corruptions, signs of gradient masking, calibration, certification.

An evaluation of a model on labeled data moves in here; the attacks that it uses are in `adversarial`.
"""

from ..engine.proportion import Proportion as Proportion
from ..namespaces import dir_of_exports, getattr_by_alias
from .calibration import Calibration as Calibration
from .calibration import Reliability as Reliability
from .calibration import calibration as calibration
from .corruption_functions import corrupted as corrupted
from .corruptions import CORRUPTIONS as CORRUPTIONS
from .corruptions import Corruptions as Corruptions
from .corruptions import corruptions as corruptions
from .evaluate import default_attacks as default_attacks
from .evaluate import evaluate as evaluate
from .evaluate_outputs import OutputRobustness as OutputRobustness
from .evaluate_outputs import evaluate_outputs as evaluate_outputs
from .gradient_masking import MaskingFinding as MaskingFinding
from .output_corruptions import OutputCorruptions as OutputCorruptions
from .result import Robustness as Robustness
from .smoothing import Smoothed as Smoothed
from .smoothing import smoothed as smoothed
from .smoothing import smoothed_predict as smoothed_predict

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
