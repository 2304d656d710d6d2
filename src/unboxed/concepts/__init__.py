"""What does it know? Concepts, probes, dictionaries of features, dissection, shortcuts and error slices.

A method is a file here; what two of them share moves into `engine`. Each stands beside its twin that must fail (a
random model, a control task, a frozen dictionary), and its result says when there is nothing to see.
"""

from ..engine.read.layer_probes import LayerProbe as LayerProbe
from ..engine.read.layer_probes import Probing as Probing
from ..namespaces import dir_of_exports, getattr_by_alias
from ._dictionary_table import DictionaryScore as DictionaryScore
from ._tcav_diagnostics import Diagnostics as Diagnostics
from .causal_units import CausalUnits as CausalUnits
from .causal_units import causal_units as causal_units
from .computed import computed_concepts as computed_concepts
from .concept_vectors import ConceptVectors as ConceptVectors
from .concept_vectors import concept_vectors as concept_vectors
from .detectors import Dissection as Dissection
from .detectors import LayerDissection as LayerDissection
from .dictionary import Dictionary as Dictionary
from .dictionary import dictionary as dictionary
from .digit_concepts import DigitConcepts as DigitConcepts
from .digit_concepts import digit_concepts as digit_concepts
from .discover import DiscoveredConcept as DiscoveredConcept
from .discover import DiscoveredConcepts as DiscoveredConcepts
from .discover import discover as discover
from .dissect import dissect as dissect
from .probe import probe as probe
from .prototypes import Prototypes as Prototypes
from .prototypes import prototypes as prototypes
from .shortcuts import Shortcuts as Shortcuts
from .shortcuts import shortcuts as shortcuts
from .slices import ErrorSlices as ErrorSlices
from .slices import error_slices as error_slices
from .tcav import ConceptScores as ConceptScores
from .tcav import tcav as tcav

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
