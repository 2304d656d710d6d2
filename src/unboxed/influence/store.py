"""A store of training gradients on disk: computed once, in bounded memory; later queries take seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..box import Box
from ..checkpointing import tensor_digest
from ..engine.example_gradients.gradients import ExampleGradients, nonfinite_loss_error
from ..engine.example_gradients.labels import check_not_shuffled
from ..engine.example_gradients.losses import ExampleLoss
from ..engine.example_gradients.routes import GradientsByParameter
from ..engine.example_gradients.sketch import Sketch
from ..engine.read.examples import labeled_batches
from ..errors import DataError, NaNError
from ..parameters import InputBatch, Labels, LayerAddresses, Seed
from ..settings import Above, AtLeast, Unit, check_settings
from ..validation import check_int
from ._data import TrainingData, read_training_examples, resolve_query_labels
from ._parts import (
    START_AGAIN_HINT,
    GradientStoreFiles,
    check_disk_space_and_log_size,
    count_examples,
    require_same_part_data,
)
from ._scores import LossFunction, loss_change_unit_text, make_one_run_influence
from ._store_settings import gradient_store_settings
from .result import SIMILARITY_UNIT_TEXT, Influence

MAX_STORE_PART_BYTES, MAX_STORE_PART_ROWS = 2**25, 4096
ROW_OVERHEAD_BYTES = 16  # scale, length and label of an example
Metric = Annotated[Literal["dot", "cosine"], "How gradients are compared."]
LearningRate = Annotated[float | None, Above(0), "Learning rate of the step."]


class TopScores(NamedTuple):
    """The training examples with the highest or lowest scores of each query, the most extreme first."""

    indices: Tensor  # (Q, k), int64
    scores: Tensor  # (Q, k)


def gradient_store(
    box: Box, train: TrainingData, folder: Annotated[str | os.PathLike[str], "Folder of the store."], *,
    dim: Annotated[int | None, AtLeast(1), Unit("values"), "Values that are kept of each gradient."] = 4096,
    dtype: Annotated[Literal["float16", "float32"], "Precision of the values on disk."] = "float16",
    layers: LayerAddresses = None, loss: LossFunction = None, seed: Seed = 0,
) -> GradientStore:  # fmt: skip
    """The gradients of all training examples in files: computed now, resumed, or opened where they are complete.

    `gradient_dot` computes the training examples' gradients for each call. A store computes them once and writes them
    in parts, for any number of queries. Its size is logged before it starts ("unboxed", level INFO): N times `dim`
    values, 490 MB for 60,000 examples. A run that was stopped goes on where it ended, when it is called again.

    Args:
        box: The opened model, trained.
        train: Labeled training examples: (x, y), a Dataset of (input, class), or a DataLoader. They are read in one
            pass, which must give the same order each time. None opens a complete store without reading them.
        folder: Folder of the store. It is made if need be.
        dim: Values that are kept of each gradient. A gradient of more parameters is projected at random: inner
            products are then right on average, with an error of about |g_q| |g_i| / sqrt(dim). None keeps all.
        dtype: Precision of the values on disk. "float16" is relative to the largest value of each gradient.
        layers: Addresses of the layers, as `box.layers` lists them. Only their parameters count; None is all that
            require a gradient.
        loss: Function of (outputs, labels) that returns each example's loss (N,). None is the one that fits the
            model's outputs: cross-entropy in nats, or half the squared error of a regression model.
        seed: Seed of all random draws: same seed, same result. They are those of the projection.

    Returns:
        A `GradientStore`, whose `scores`, `top` and `bottom` answer queries.

    Raises:
        ModelError: for a folder that is a store of another model or of other settings.
        DataError: where the training examples have changed or come in another order, or have no labels.
        WriteError: where the folder can't be written, or its disk has not enough space.
        NaNError: where the loss of a training example is NaN; the error names it.
        OutputError: where the examples of a batch depend on one another.

    Example:
        >>> import tempfile, unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> train, (x, y) = ub.data.digits("train").first(50), ub.data.digits("test").first(2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ub.influence.gradient_store(box, train, folder, dim=256)
        ...     top = store.top(x, y, k=3)
        >>> top.indices.shape
        torch.Size([2, 3])
    """
    check_settings(gradient_store, locals())
    store = GradientStore(box, folder, dim=dim, dtype=dtype, layers=layers, loss=loss, seed=seed)
    if train is not None:
        store._compute_missing_parts(train)
    elif store._parts.manifest() is None:
        raise DataError(f"{store.folder} is no complete store; give its training examples, so that it can be finished")
    return store


class GradientStore:
    """Gradients of training examples in files, made by `gradient_store`.

    Attributes:
        box: The opened model.
        folder: Folder of the store.
        width: Values per example.
    """

    def __init__(
        self, box: Box, folder: str | os.PathLike[str], *, dim: int | None, dtype: str,
        layers: Sequence[str] | str | None, loss: ExampleLoss | None, seed: int,
    ) -> None:  # fmt: skip
        self.box, self.folder = box, Path(folder)
        self._gradients = ExampleGradients(box, layers, loss)
        parameters, n = self._gradients.parameters, self._gradients.n_parameters
        self._sketch_dense = Sketch(parameters, dim, seed) if dim is not None and dim < n else None
        self.width = n if dim is None else min(dim, n)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._parts = GradientStoreFiles(self.folder, gradient_store_settings(
            self._gradients, loss, dim=self.width, dtype=dtype, seed=seed if self._sketch_dense else 0
        ))  # fmt: skip

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return int(self._require_manifest()["rows"])

    @property
    def n_bytes(self) -> int:
        """Size on disk, but for what files need besides."""
        return self.n_train * self._bytes_per_row

    @property
    def labels(self) -> Tensor:
        """(N,) the training examples' labels."""
        return torch.cat([self._parts.read(k, "labels") for k in self._part_indices()]).to(self.box.device)

    @property
    def norms(self) -> Tensor:
        """(N,) lengths of the training examples' gradients, not of their projections: the self-influence, squared."""
        return torch.cat([self._parts.read(k, "norms") for k in self._part_indices()]).to(self.box.device)

    def scores(
        self, x: InputBatch, labels: Labels = None, *, metric: Metric = "dot", lr: LearningRate = None
    ) -> Influence:
        """Scores of all training examples, as `gradient_dot` gives them.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
            labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
            metric: How gradients are compared: "dot" or "cosine".
            lr: Learning rate of the step. With it, scores of "dot" are nats; None gives the plain inner products.

        Returns:
            Scores (Q, N), as of `gradient_dot`.

        Example:
            >>> import tempfile, unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> train = ub.data.digits("train").first(50)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ub.influence.gradient_store(box, train, folder, layers="fc2")
            ...     store.scores(train.x[:2]).scores.shape
            torch.Size([2, 50])
        """
        x, y = self._check_queries_and_labels(x, labels)
        scores = torch.cat(list(self._iter_scores_by_part(x, y, metric, lr)), 1)
        unit = (
            loss_change_unit_text(self.box, self._gradients.loss)
            if metric == "dot" and lr is not None
            else SIMILARITY_UNIT_TEXT
        )
        return make_one_run_influence(self.box, "Gradient dot", scores, x, y, self.labels, unit)

    def top(
        self, x: InputBatch, labels: Labels = None, k: int = 8, *, metric: Metric = "dot", lr: LearningRate = None
    ) -> TopScores:
        """The k most helpful training examples of each query, without the scores of all others.

        Args:
            x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries.
            labels: Correct classes (N,), or one for all. Their loss is explained; None is the predicted class.
            k: Number of examples to find.
            metric: How gradients are compared: "dot" or "cosine".
            lr: Learning rate of the step. With it, scores of "dot" are nats; None gives the plain inner products.

        Returns:
            `TopScores`: indices and scores, both (Q, k).

        Example:
            >>> import tempfile, unboxed as ub
            >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
            >>> train = ub.data.digits("train").first(50)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     store = ub.influence.gradient_store(box, train, folder, layers="fc2")
            ...     store.top(train.x[:1], k=2, metric="cosine").scores.shape
            torch.Size([1, 2])
        """
        return self._top_scores(x, labels, k, metric, lr, sign=1)

    def bottom(
        self, x: InputBatch, labels: Labels = None, k: int = 8, *, metric: Metric = "dot", lr: LearningRate = None
    ) -> TopScores:
        """The k most harmful training examples of each query, without the scores of all others; as `top`."""
        return self._top_scores(x, labels, k, metric, lr, sign=-1)

    def __repr__(self) -> str:
        manifest = self._parts.manifest()
        rows = "incomplete" if manifest is None else f"{manifest['rows']} examples"
        return f"GradientStore({str(self.folder)!r}, {rows}, {self.width} values each, {self._parts.settings['dtype']})"

    def _check_queries_and_labels(self, x: Any, labels: Any) -> tuple[Tensor, Tensor]:
        x = self.box.validate_inputs(x)
        return x, resolve_query_labels(self.box, x, labels)

    def _top_scores(self, x: Any, labels: Any, k: int, metric: str, lr: float | None, sign: int) -> TopScores:
        k = min(check_int("k", k, minimum=1), self.n_train)
        x, y = self._check_queries_and_labels(x, labels)
        best = TopScores(torch.empty(len(x), 0, dtype=torch.long, device=x.device), x.new_empty(len(x), 0))
        start = 0
        for block in self._iter_scores_by_part(x, y, metric, lr):
            index = torch.arange(start, start + block.shape[1], device=x.device).expand(len(x), -1)
            indices, scores = torch.cat([best.indices, index], 1), torch.cat([best.scores, block], 1)
            order = (sign * scores).argsort(dim=1, descending=True, stable=True)[:, :k]
            best, start = TopScores(indices.gather(1, order), scores.gather(1, order)), start + block.shape[1]
        return best

    def _iter_scores_by_part(self, x: Tensor, y: Tensor, metric: str, lr: float | None) -> Iterator[Tensor]:
        """Scores (Q, n) of the training examples of each part."""
        queries, norms = self._projected_gradients_and_norms(x, y)
        n_train = self.n_train
        for k in self._part_indices():
            rows, scale, train_norms = (self._parts.read(k, n).to(x.device) for n in ("features", "scale", "norms"))
            products = (queries.float() @ rows.float().T * scale).to(self.box.dtype)
            if metric == "cosine":
                lengths = norms[:, None] * train_norms.to(norms)
                yield products / lengths.where(lengths > 0, 1)
            else:
                yield products if lr is None else products * (lr / n_train)

    @property
    def _bytes_per_row(self) -> int:
        return self.width * self._dtype.itemsize + ROW_OVERHEAD_BYTES

    @property
    def _rows_per_part(self) -> int:
        return max(1, min(MAX_STORE_PART_ROWS, MAX_STORE_PART_BYTES // self._bytes_per_row))

    def _require_manifest(self) -> dict[str, Any]:
        if (manifest := self._parts.manifest()) is None:
            raise DataError(f"{self.folder} is no complete store; call gradient_store with its training examples")
        return manifest

    def _part_indices(self) -> range:
        return range(len(self._require_manifest()["digests"]))

    def _compute_missing_parts(self, train: Any) -> None:
        """Compute the parts that are missing, and check that the others are of the same data."""
        digests, n_rows, complete = list[str](), 0, self._parts.manifest()
        if complete is None:
            check_disk_space_and_log_size(self.folder, count_examples(train), self._bytes_per_row)
        for k, (x, y) in enumerate(_iter_batches(self.box, train, self._rows_per_part)):
            digests.append(str(tensor_digest(x, y)))
            if (found := self._parts.digest(k)) is not None:
                require_same_part_data(self.folder, found, digests[k], range(n_rows, n_rows + len(x)))
            elif complete is not None:
                raise DataError(f"{self.folder} is a store of fewer training examples than these. {START_AGAIN_HINT}")
            else:
                self._write_part(k, x, y, digests[k], n_rows)
            n_rows += len(x)
        self._parts.check_no_extra_parts(len(digests))
        if complete is None:
            self._parts.write_manifest(n_rows, digests)

    def _write_part(self, k: int, x: Tensor, y: Tensor, digest: str, first_row: int) -> None:
        try:
            features, norms = self._projected_gradients_and_norms(x, y)
        except NaNError as error:
            raise nonfinite_loss_error([first_row + i for i in error.rows]) from None
        largest = features.abs().amax(1).float()
        scale = largest.where(largest > 0, 1) if self._dtype == torch.float16 else torch.ones_like(largest)
        tensors = {
            "features": (features / scale[:, None]).to(self._dtype), "scale": scale, "norms": norms.float(), "labels": y
        }  # fmt: skip
        self._parts.write(k, {name: h.cpu().contiguous() for name, h in tensors.items()}, digest)

    def _projected_gradients_and_norms(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of gradients, (n, width), and their lengths (n,)."""

        def sketch_and_norms(terms: GradientsByParameter) -> tuple[Tensor, Tensor]:
            rows = self._sketch_dense(terms) if self._sketch_dense else torch.cat([t.rows() for t in terms.values()], 1)
            return rows, torch.stack([t.squared_norms() for t in terms.values()]).sum(0).sqrt()

        features, norms = zip(*self._gradients.map_gradients_in_parts(sketch_and_norms, x, y), strict=True)
        return torch.cat(features), torch.cat(norms)


def _iter_batches(box: Box, train: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels, in the memory of one batch where they are classes."""
    check_not_shuffled(train)
    if box.outputs not in ("regression", "multilabel"):
        return labeled_batches(box, train, size)
    x, y = read_training_examples(box, train)
    return iter(zip(torch.split(x, size), torch.split(y, size), strict=True))
