"""What fools it?"""

from .pgd import pgd as pgd
from .result import Adversarial as Adversarial
