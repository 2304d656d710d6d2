"""What does it see? Activations of real inputs: maps, top examples, statistics, similarity, ablation, patching.

A method that reads or rewrites activations is a file here; what two of them share moves into `engine.read`.
"""

from ..engine.read.edits import ablate as ablate
from ..engine.read.edits import put as put
from ..engine.read.edits import scale as scale
from ..engine.read.neighbors import Neighbors as Neighbors
from ..namespaces import dir_of_exports, getattr_by_alias
from .ablation import Ablation as Ablation
from .ablation import ablation as ablation
from .cka import CKA as CKA
from .cka import cka as cka
from .filters import Filters as Filters
from .filters import filters as filters
from .maps import LayerMaps as LayerMaps
from .maps import maps as maps
from .nearest_neighbors import nearest_neighbors as nearest_neighbors
from .patching import PatchedLayer as PatchedLayer
from .patching import Patching as Patching
from .patching import patching as patching
from .projections import Projections as Projections
from .projections import projections as projections
from .receptive_field import ReceptiveField as ReceptiveField
from .receptive_field import receptive_field as receptive_field
from .rewrite import RewriteResult as RewriteResult
from .rewrite import rewrite as rewrite
from .statistics import UnitStatistics as UnitStatistics
from .statistics import statistics as statistics
from .top_examples import TopExamples as TopExamples
from .top_examples import top_examples as top_examples
from .tsne import TsneMap as TsneMap
from .tsne import TsneMaps as TsneMaps
from .tsne import tsne as tsne

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
