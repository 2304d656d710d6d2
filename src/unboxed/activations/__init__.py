"""What does it see?"""

from .filters import filters as filters
from .maps import LayerMaps as LayerMaps
from .maps import maps as maps
