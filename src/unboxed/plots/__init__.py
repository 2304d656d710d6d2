"""Pictures of what methods return. Pillow and numpy only, but for `heatmap`; nothing here runs a model.

A view of a result is a file here; only what draws moves in, from tensors alone.
"""

from . import colors, compare, draw, heat, map, projector, sheet, units
from .draw import activations, class_sheet, confused, filters, gradients, morph_strip
from .drawn import animation, drawings, strip
from .files import gif, png, save
from .heat import heatmap
from .patch import printable
from .pngs import save_png

__all__ = [
    "activations",
    "animation",
    "class_sheet",
    "colors",
    "compare",
    "confused",
    "draw",
    "drawings",
    "filters",
    "gif",
    "gradients",
    "heat",
    "heatmap",
    "map",
    "morph_strip",
    "png",
    "printable",
    "projector",
    "save",
    "save_png",
    "sheet",
    "strip",
    "units",
]
