"""Who taught it that? The influence of training examples on what a model answers.

A method that scores training examples for queries is a file here; what two of them share moves into
`engine.example_gradients` (per-example gradients) or `engine.unroll` (trainings that can be run again).
"""

from ..engine.unroll.model_training import ModelTraining as ModelTraining
from ..engine.unroll.training import Training as Training
from ..namespaces import dir_of_exports, getattr_by_alias
from . import validate as validate
from .gradient_dot import gradient_dot as gradient_dot
from .group import GroupInfluence as GroupInfluence
from .group import group as group
from .influence_functions import influence_functions as influence_functions
from .mislabels import SuspectedMislabels as SuspectedMislabels
from .mislabels import suspected_mislabels as suspected_mislabels
from .nearest_training_examples import nearest_training_examples as nearest_training_examples
from .perturb import perturb as perturb
from .removal import Removal as Removal
from .removal import removal as removal
from .representer_points import representer_points as representer_points
from .result import Influence as Influence
from .result import mean_over_seeds as mean_over_seeds
from .self_influence import SelfInfluence as SelfInfluence
from .self_influence import self_influence as self_influence
from .solvers import Arnoldi as Arnoldi
from .solvers import ConjugateGradient as ConjugateGradient
from .solvers import Exact as Exact
from .solvers import Kronecker as Kronecker
from .solvers import LiSSA as LiSSA
from .source import source as source
from .store import GradientStore as GradientStore
from .store import gradient_store as gradient_store
from .tracin import tracin as tracin
from .trak import trak as trak
from .unrolled import unrolled as unrolled
from .upweight import upweight as upweight

__dir__ = dir_of_exports(__name__, "validate")
__getattr__ = getattr_by_alias(__name__)
