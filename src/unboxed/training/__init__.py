"""Training: the plain loop, the zoo's recipes, weights to files.

What changes weights, or is called while they change, moves in here.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .confused import ConfusedInputs as ConfusedInputs
from .defense import DEFENSES as DEFENSES
from .defense import PGD as PGD
from .defense import Defense as Defense
from .defense import Fast as Fast
from .defense import Trades as Trades
from .files import save_weights as save_weights
from .files import versions as versions
from .fit import History as History
from .fit import accuracy as accuracy
from .fit import fit as fit
from .recipes import TrainedModel as TrainedModel
from .recipes import recipe as recipe
from .recipes import robust_accuracy as robust_accuracy
from .recipes import train as train
from .snapshots import Snapshots as Snapshots
from .watch import ConfusedLogits as ConfusedLogits

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
