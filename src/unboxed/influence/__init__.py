"""Who taught it that? The influence of training examples on what a model answers.

A method that scores training examples for queries is a file here; what two of them share moves into
`engine.example_gradients` (per-example gradients) or `engine.unroll` (trainings that can be run again).
"""

from .result import Influence as Influence
