"""Objectives: functions of activations that give one score per example, (N,).

Higher is better, always: the engine maximizes, and `-objective` is minimized, so no objective has a sign of its own.
Besides layers, "input", "output" and "logits" can be scored. What an objective holds per example (labels, a target
activation) is selected by `.rows(index)` when a batch is split or finished examples are dropped.

A new score of activations moves in here; what optimizes one moves into `engine.optimize`.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .algebra import INPUT_OUTPUT_ADDRESSES as INPUT_OUTPUT_ADDRESSES
from .algebra import Acts as Acts
from .algebra import Constant as Constant
from .algebra import Objective as Objective
from .algebra import RowIndex as RowIndex
from .algebra import as_float_activation as as_float_activation
from .algebra import constant_to_like as constant_to_like
from .algebra import layer_objective as layer_objective
from .calls import is_equal_value as is_equal_value
from .calls import remember_call as remember_call
from .images import alpha_norm as alpha_norm
from .images import color_distance as color_distance
from .images import total_variation as total_variation
from .outputs import binary_logit as binary_logit
from .outputs import check_classes as check_classes
from .outputs import class_logit as class_logit
from .outputs import dlr as dlr
from .outputs import log_odds as log_odds
from .outputs import logit as logit
from .outputs import logprob as logprob
from .outputs import loss as loss
from .outputs import margin as margin
from .outputs import mean_over_positions as mean_over_positions
from .outputs import targeted_dlr as targeted_dlr
from .outputs import to_class_tensor as to_class_tensor
from .similarity import cosine as cosine
from .similarity import diversity as diversity
from .similarity import dot as dot
from .similarity import gram_matrix as gram_matrix
from .similarity import match as match
from .similarity import style as style
from .tokens import tokens_logprob as tokens_logprob
from .units import channel as channel
from .units import direction as direction
from .units import energy as energy
from .units import neuron as neuron
from .units import spatial as spatial

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
