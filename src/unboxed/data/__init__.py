"""Data sets: images in [0, 1] with their classes. Any torch Dataset of (image, label) can be used, too.

`digits` needs no download; `mnist` and `fashion_mnist` read the original files; `folder` reads images of your own,
`table` those that a CSV or Parquet file lists, `image` a single one, and `texts` a file of texts;
`wrap` turns any torch Dataset into one of these. All have `.first(n)`, `.tensors()`, `.classes`, `.name` and `.inputs`.

A loader of a small data set moves in here; what resolves names from a command line, into `loading`.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .folders import folder
from .idx import fashion_mnist, mnist
from .labeled_files import Folder
from .reviews import reviews
from .sets import Batch, Images
from .single import image
from .tables import table
from .texts import Texts, texts
from .uci import digits
from .wrapped import first, wrap

__all__ = [
    "Batch", "Folder", "Images", "Texts", "digits", "fashion_mnist", "first", "folder", "image", "mnist", "reviews",
    "table", "texts", "wrap",
]  # fmt: skip

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
