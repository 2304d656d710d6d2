"""Can I believe the picture? Tests of explanations: randomization, controls, faithfulness, a verdict.

What judges an explanation, for any method of attribution, synthesis or influence, moves in here.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .controls import ConstantModel as ConstantModel
from .controls import RandomInput as RandomInput
from .controls import constant_model as constant_model
from .controls import random_input as random_input
from .deletion import PerturbationCurve as PerturbationCurve
from .deletion import deletion as deletion
from .deletion import insertion as insertion
from .edges import EdgeSimilarity as EdgeSimilarity
from .edges import edge_control as edge_control
from .explain import explain_verdict as explain_verdict
from .infidelity import Infidelity as Infidelity
from .infidelity import infidelity as infidelity
from .infidelity import max_sensitivity as max_sensitivity
from .influence_planting import PlantedTraining as PlantedTraining
from .influence_planting import plant_training as plant_training
from .influence_verdict import influence_verdict as influence_verdict
from .labels import LabelRandomization as LabelRandomization
from .labels import label_randomization as label_randomization
from .labels import shuffle_labels as shuffle_labels
from .labels import train_twice as train_twice
from .perturbing import random_maps as random_maps
from .planting import PlantedDataset as PlantedDataset
from .planting import Trigger as Trigger
from .planting import plant_shortcut as plant_shortcut
from .pointing import energy_inside as energy_inside
from .pointing import pointing_game as pointing_game
from .randomization import Randomization as Randomization
from .randomization import randomization as randomization
from .ranking import candidates as candidates
from .ranking import rank_methods as rank_methods
from .road import Road as Road
from .road import road as road
from .sensitivity_n import SensitivityN as SensitivityN
from .sensitivity_n import sensitivity_n as sensitivity_n
from .shortcut import shortcut as shortcut
from .shortcut_report import ShortcutReport as ShortcutReport
from .similarity import MapSimilarity as MapSimilarity
from .similarity import map_similarity as map_similarity
from .tokens import TokenCheck as TokenCheck
from .tokens import tokens as tokens
from .verdict import Verdict as Verdict
from .verdict import verdict as verdict

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
