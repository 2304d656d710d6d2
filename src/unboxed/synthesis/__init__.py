"""What is it looking for? Images optimized for an objective: class images, features, inversions, textures.

A method that optimizes inputs for an objective is a file here; what attacks use, too, moves into `engine.optimize`.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .caricature import caricature as caricature
from .channels import Channels as Channels
from .channels import channels as channels
from .class_image import ClassImages as ClassImages
from .class_image import class_image as class_image
from .deep_visualization import Regularization as Regularization
from .deep_visualization import deep_visualization as deep_visualization
from .deepdream import deepdream as deepdream
from .feature import feature as feature
from .generated import GeneratedImages as GeneratedImages
from .inversion import Inversion as Inversion
from .inversion import inversion as inversion
from .inversions import Inversions as Inversions
from .inversions import inversions as inversions
from .minimal_deactivation import MinimalDeactivation as MinimalDeactivation
from .minimal_deactivation import minimal_deactivation as minimal_deactivation
from .morph import Morph as Morph
from .morph import morph as morph
from .texture import style_transfer as style_transfer
from .texture import texture as texture

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
