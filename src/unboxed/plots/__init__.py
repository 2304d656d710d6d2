"""Figures of results, as Pillow images: contact sheets, charts, animations; `figures` draws any result.

A function that draws a type of result is a file here; what is drawn from tensors alone, without a model, moves in.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from . import charts, colors, compare, draw, embedding, labels, projector, sheet, units
from .attribution_plot import attribution_plot
from .draw import activations, class_sheet, confused, filters, gradients, morph_strip
from .figures import figures
from .files import png_bytes, save, save_gif
from .generated import frame_strip, image_sheet, save_animation
from .patch import printable_patch
from .png_files import save_png

__all__ = [
    "activations",
    "attribution_plot",
    "charts",
    "class_sheet",
    "colors",
    "compare",
    "confused",
    "draw",
    "embedding",
    "figures",
    "filters",
    "frame_strip",
    "gradients",
    "image_sheet",
    "labels",
    "morph_strip",
    "png_bytes",
    "printable_patch",
    "projector",
    "save",
    "save_animation",
    "save_gif",
    "save_png",
    "sheet",
    "units",
]

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
