"""Why this answer? Maps of how much each input value counts for a score: gradients, class activation maps, masks.

Every method gives an `Attribution`: the map as a tensor, with what it explains as attributes. Every method raises
NaNError where a score that it attributes is NaN or infinite, and names the rows. Where a map is NaN or infinite though
its score is finite (a square root has no slope at 0), an UnboxedWarning says so.

A method moves in here as one file; what two of them share is in `engine.gradients` or `engine.perturb`.
"""

from ..engine.attribution_result import Attribution as Attribution
from ..namespaces import dir_of_exports, getattr_by_alias
from .attn_lrp import attn_lrp as attn_lrp
from .deconvnet import deconvnet as deconvnet
from .deep_lift import deep_lift as deep_lift
from .expected_gradients import expected_gradients as expected_gradients
from .feature_ablation import feature_ablation as feature_ablation
from .grad_cam import grad_cam as grad_cam
from .grad_cam import grad_cam_plus_plus as grad_cam_plus_plus
from .gradient import gradient as gradient
from .gradient_attention import gradient_attention as gradient_attention
from .gradient_x_input import gradient_x_input as gradient_x_input
from .guided_backprop import guided_backprop as guided_backprop
from .guided_grad_cam import guided_grad_cam as guided_grad_cam
from .hires_cam import hires_cam as hires_cam
from .integrated_gradients import integrated_gradients as integrated_gradients
from .kernel_shap import kernel_shap as kernel_shap
from .layer_cam import layer_cam as layer_cam
from .legrad import legrad as legrad
from .lime import lime as lime
from .lime import lime_top as lime_top
from .lime import positive_segments_mask as positive_segments_mask
from .lrp import lrp as lrp
from .occlusion import occlusion as occlusion
from .rise import rise as rise
from .rollout import rollout as rollout
from .segmentation import segmentation as segmentation
from .shapley import shapley as shapley
from .smoothgrad import smoothgrad as smoothgrad

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
