"""Planted models: trained models whose reasons are known, against which verdicts on explanations are measured."""

from .catalog import ENTRIES as ENTRIES
from .catalog import PlantedModel as PlantedModel
from .catalog import load as load
from .catalog import names as names
from .catalog import split_of as split_of
