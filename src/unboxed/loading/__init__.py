"""Models, weights and data by name, as on a command line: `zoo:mnist-cnn`, `model.py:make`, `model.pt`, `digits`.

A factory is the user's code and is run. A checkpoint is data: nothing in it is ever executed.

What turns a path or a name into a model, a box or data moves in here.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .boxes import load as load
from .checkpoints import weights as weights
from .models import model as model
from .sources import data as data
from .sources import dataset_with_model_classes as dataset_with_model_classes

__all__ = ["data", "dataset_with_model_classes", "load", "model", "weights"]
__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
