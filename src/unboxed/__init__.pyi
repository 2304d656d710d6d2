from . import activations as activations
from . import adversarial as adversarial
from . import attribution as attribution
from . import data as data
from . import errors as errors
from . import plots as plots
from . import synthesis as synthesis
from . import training as training
from . import zoo as zoo
from .box import Box as Box
from .cards import cards as cards
from .comparing import compare as compare
from .comparing import epochs as epochs
from .inputs import Features as Features
from .inputs import Pixels as Pixels
from .loading import load as load
from .objectives import channel as channel
from .objectives import direction as direction
from .objectives import logit as logit
from .objectives import logprob as logprob
from .objectives import loss as loss
from .objectives import margin as margin
from .objectives import match as match
from .objectives import neuron as neuron
from .report import report as report

__version__: str
