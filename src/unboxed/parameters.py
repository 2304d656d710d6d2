"""Parameters that many methods share, each described once: its type, its range, its unit and its first sentence.

A method's docstring begins each parameter with the sentence that stands here (a test compares them), and may go on with
what is particular to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from .inputs.labels import ClassLabels
from .model.batching import BatchSize as BatchSize
from .objectives import Objective
from .settings import Above, AtLeast, Below, IfSeveral, OrOnePerPart, ReadAs, Unit, ValueRole
from .validation import norm_name

# -- what is asked about -----------------------------------------------------------------------------------------------

InputBatch = Annotated[Any, ValueRole("inputs"), "Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]."]
Labels = Annotated[ClassLabels | None, ValueRole("labels"), "Correct classes (N,), or one for all."]
Target = Annotated[
    ClassLabels | Objective | None, ValueRole("target"), "The score: a class, one per example (N,), or an objective."
]
LayerAddress = Annotated[str | None, ValueRole("layer"), "Address of the layer, as `box.layers` lists them."]
RequiredLayerAddress = Annotated[str, ValueRole("layer"), "Address of the layer, as `box.layers` lists them."]
LayerAddresses = Annotated[
    Sequence[str] | str | None, ValueRole("layers"), "Addresses of the layers, as `box.layers` lists them."
]
MaxExamples = Annotated[int | None, AtLeast(1), Unit("examples"), "Use only the first of the examples; None uses all."]
Data = Annotated[Any, ValueRole("data"), "Examples: a Dataset, a DataLoader, an iterable, or tensors."]

RequiredObjective = Annotated[
    Objective, ValueRole("objective"), 'An objective (a score per example), such as `ub.channel("conv2", 3)`.'
]
UnitIndices = Annotated[
    int | Sequence[int] | Tensor | None, ValueRole("ints"), "Units (channels) of the layer; None takes all of them."
]
UnitAxis = Annotated[int, "Axis of the layer's units; its other axes, but for the batch, are positions."]
NExamplesToFind = Annotated[int, AtLeast(1), Unit("examples"), "Number of examples to find."]

NExtraTokens = Annotated[
    int | None, AtLeast(0), ValueRole("tokens"), "Tokens before those of the patches: a class token, registers."
]
Upsample = Annotated[bool, "Enlarge the map to the size of the image (bilinear)."]
ExplainedQuantity = Annotated[
    Literal["probability", "score"] | None, "What is explained: the probability of the class, or the score of `target`."
]

# -- attacks -----------------------------------------------------------------------------------------------------------

Norm = Annotated[Literal["linf", "l2", "l1"], ReadAs(norm_name), "Norm in which the distance from x is measured."]
LinfOrL2Norm = Annotated[Literal["linf", "l2"], ReadAs(norm_name), "Norm in which the distance from x is measured."]
L2NormOnly = Annotated[Literal["l2"], ReadAs(norm_name), "Norm in which the distance from x is measured."]
CURVE_OVER_EPS_ADVICE = "for a curve over eps use ub.robustness.evaluate(box, (x, y), eps=[0.1, 0.3])"
EpsOrOnePerPart = Annotated[
    float | Mapping[str, float | None] | Sequence[float | None] | None,
    ValueRole("float"),
    OrOnePerPart(),
    Above(0),
    Unit("pixel range"),
    "Largest distance from x.",
]
Eps = Annotated[
    float | None,
    IfSeveral(f"An eps for each of several inputs is taken by attacks such as pgd and apgd; {CURVE_OVER_EPS_ADVICE}"),
    Above(0),
    Unit("pixel range"),
    "Largest distance from x.",
]
AttackTarget = Annotated[ClassLabels | None, ValueRole("labels"), "Class to become (N,), or one for all."]
CustomAttackObjective = Annotated[
    Objective | None, ValueRole("objective"), "What is raised above zero, instead of a wrong class."
]
Steps = Annotated[int, AtLeast(0), Unit("steps"), "Number of iterations."]
AttackSteps = Annotated[int, AtLeast(1), Unit("steps"), "Number of iterations."]
StepSize = Annotated[float | None, Above(0), Unit("pixel range"), "Length of a step, in the norm."]
RandomStart = Annotated[bool, "Start at a random point of the ball instead of at x."]
Restarts = Annotated[int, AtLeast(1), Unit("runs"), "Number of runs, each from another random start."]
EarlyStop = Annotated[bool, "Stop examples as soon as they are good enough."]
StartImages = Annotated[Tensor | None, "Images (S, ...) to start from."]
MaxQueries = Annotated[int, AtLeast(1), Unit("forward passes"), "Largest number of forward passes per example."]
NModelNoiseDraws = Annotated[
    int, AtLeast(1), Unit("draws"), "Draws of the model's own noise that gradients are averaged over."
]
RoundingBits = Annotated[
    Literal[8, 4, 2, 1] | None, "Bits per value to which images are rounded: 8 gives the levels of PNG files."
]
CheckpointPath = Annotated[
    str | os.PathLike[str] | None, ValueRole("path"), "File from which a call that was stopped goes on."
]

# -- synthesis ---------------------------------------------------------------------------------------------------------

TargetClasses = Annotated[ClassLabels | None, ValueRole("labels"), "Classes (K,) to make an image for."]
OptionalSteps = Annotated[int | None, AtLeast(0), Unit("steps"), "Number of iterations."]
StopProbability = Annotated[float, Above(0), Below(1), "Probability of the target at which an image is done."]
CanvasKind = Annotated[Literal["fourier", "pixels", "maco"], "Parameterization of the images."]
DiversityWeight = Annotated[float, AtLeast(0), "Weight of the term that makes the images of one objective differ."]
TotalVariationWeight = Annotated[float, AtLeast(0), "Weight of the total variation, which is kept small."]
MaxJitter = Annotated[int | None, AtLeast(0), Unit("pixels"), "Largest random shift of the images in each step."]
NStartsPerInput = Annotated[int, AtLeast(1), Unit("images"), "Images per input, each from another random start."]

# -- runs --------------------------------------------------------------------------------------------------------------

Seed = Annotated[int, ValueRole("seed"), "Seed of all random draws: same seed, same result."]
NSamples = Annotated[int, AtLeast(1), Unit("samples"), "Number of random samples."]
FrameInterval = Annotated[int | None, AtLeast(1), Unit("steps"), "Keep every k-th step's images as frames."]
