"""How each type of result is drawn: a function per type, registered with `plots.figures`, a file per family.

What chooses and captions the plots of a new type of result moves in; what draws is a function of `plots`.
"""

from . import activations as activations
from . import adversarial as adversarial
from . import attribution as attribution
from . import checks as checks
from . import checks_tokens as checks_tokens
from . import common as common
from . import concepts_dictionary as concepts_dictionary
from . import concepts_discover as concepts_discover
from . import concepts_dissect as concepts_dissect
from . import concepts_groups as concepts_groups
from . import concepts_probe as concepts_probe
from . import concepts_tcav as concepts_tcav
from . import containers as containers
from . import explanation as explanation
from . import influence as influence
from . import language as language
from . import language_models as language_models
from . import robustness as robustness
from . import synthesis as synthesis
from . import tables as tables
