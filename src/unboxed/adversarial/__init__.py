"""What fools it? Attacks: adversarial images within a ball or of minimal distance, patches, fooling images.

One file per attack; code that several attacks share moves in next to them. Evaluations by attacks: `robustness`.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .apgd import apgd as apgd
from .auto_attack import AutoAdversarial as AutoAdversarial
from .auto_attack import auto_attack as auto_attack
from .bim import bim as bim
from .boundary import boundary as boundary
from .carlini_wagner import carlini_wagner as carlini_wagner
from .ddn import ddn as ddn
from .deepfool import deepfool as deepfool
from .fab import fab as fab
from .fgsm import fgsm as fgsm
from .fmn import fmn as fmn
from .fooling import Fooling as Fooling
from .fooling import fooling as fooling
from .hop_skip_jump import hop_skip_jump as hop_skip_jump
from .hotflip import WordSwaps as WordSwaps
from .hotflip import hotflip as hotflip
from .lbfgs import distortion as distortion
from .lbfgs import lbfgs as lbfgs
from .mi_fgsm import mi_fgsm as mi_fgsm
from .patch import Patch as Patch
from .patch import patch as patch
from .pgd import pgd as pgd
from .result import Adversarial as Adversarial
from .square import square as square
from .universal import Universal as Universal
from .universal import universal as universal

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
