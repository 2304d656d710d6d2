"""Small models with trained or new weights: `zoo.load("digits-cnn")` gives a model and its inputs.

Each weights file has a card, `zoo.card(name)`: on which data, how and how well the model was trained.

A model moves in here with a recipe in `training.recipes` that makes its weights again, a generator with its recipe in
`benchmarks/zoo_generators.py`.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .registry import ZOO_WEIGHTS_FOLDER as ZOO_WEIGHTS_FOLDER
from .registry import ZooEntry as ZooEntry
from .registry import card as card
from .registry import entry as entry
from .registry import generator_names as generator_names
from .registry import load as load
from .registry import load_generator as load_generator
from .registry import names as names

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
