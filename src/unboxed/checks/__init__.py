"""Can I believe the picture? Tests of explanations: randomization, controls, faithfulness, a verdict.

What judges an explanation, for any method of attribution or synthesis, moves in here.
"""

from .controls import ConstantModel as ConstantModel
from .controls import RandomInput as RandomInput
from .controls import constant_model as constant_model
from .controls import random_input as random_input
from .deletion import Curve as Curve
from .deletion import deletion as deletion
from .deletion import insertion as insertion
from .edges import Edges as Edges
from .edges import edge_control as edge_control
from .infidelity import Infidelity as Infidelity
from .infidelity import infidelity as infidelity
from .infidelity import max_sensitivity as max_sensitivity
from .labels import Labels as Labels
from .labels import label_randomization as label_randomization
from .labels import retrained as retrained
from .labels import shuffled as shuffled
from .perturbing import random_maps as random_maps
from .planting import Mark as Mark
from .planting import Planted as Planted
from .planting import planted as planted
from .pointing import energy_inside as energy_inside
from .pointing import pointing_game as pointing_game
from .randomization import Randomization as Randomization
from .randomization import randomization as randomization
from .ranking import candidates as candidates
from .ranking import ranked as ranked
from .road import Road as Road
from .road import road as road
from .sensitivity_n import SensitivityN as SensitivityN
from .sensitivity_n import sensitivity_n as sensitivity_n
from .shortcut import Shortcut as Shortcut
from .shortcut import shortcut as shortcut
from .similarity import Similarity as Similarity
from .similarity import similarity as similarity
from .verdict import Verdict as Verdict
from .verdict import verdict as verdict
