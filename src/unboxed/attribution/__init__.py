"""Why this answer?"""

from .deconvnet import deconvnet as deconvnet
from .gradient import gradient as gradient
from .guided_backprop import guided_backprop as guided_backprop
