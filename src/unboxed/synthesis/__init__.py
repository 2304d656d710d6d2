"""What is it looking for? Images optimized for an objective: class images, features, inversions, textures.

A method that draws inputs is a file here; what attacks draw with, too, moves into `engine.optimize`.
"""

from .caricature import caricature as caricature
from .channels import Channels as Channels
from .channels import channels as channels
from .class_image import ClassImages as ClassImages
from .class_image import class_image as class_image
from .deep_visualization import Regularization as Regularization
from .deep_visualization import deep_visualization as deep_visualization
from .deepdream import deepdream as deepdream
from .feature import feature as feature
from .inversion import Inversion as Inversion
from .inversion import inversion as inversion
from .inversions import Inversions as Inversions
from .inversions import inversions as inversions
from .morph import Morph as Morph
from .morph import morph as morph
from .silence import Silence as Silence
from .silence import silence as silence
from .texture import style_transfer as style_transfer
from .texture import texture as texture
