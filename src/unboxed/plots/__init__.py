"""Pictures of what methods return. Pillow and numpy only, but for `heatmap`; nothing here runs a model.

A view of a result is a file here; only what draws moves in, from tensors alone.
"""

from . import charts, colors, compare, draw, heat, map, projector, sheet, units
from .draw import activations, class_sheet, confused, filters, gradients, morph_strip
from .figures import figures
from .files import png_bytes, save, save_gif
from .heat import attribution_plot
from .patch import printable_patch
from .png_files import save_png
from .synthesized import frame_strip, image_sheet, save_animation

__all__ = [
    "activations",
    "attribution_plot",
    "charts",
    "class_sheet",
    "colors",
    "compare",
    "confused",
    "draw",
    "figures",
    "filters",
    "frame_strip",
    "gradients",
    "heat",
    "image_sheet",
    "map",
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
