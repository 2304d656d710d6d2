"""What errors and warnings about missing gradients advise: the attacks that need none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..box import Box
from ..cards import cards
from ..engine.gradients.score import REENTRANT_CHECKPOINT_MESSAGE
from ..errors import NaNError, OutputError
from ..inputs.pixels import Pixels


@contextmanager
def explaining_missing_gradient(box: Box) -> Iterator[None]:
    """Where the model has no gradient, the error names the attacks that need none."""
    try:
        yield
    except NaNError:
        raise
    except OutputError as error:
        raise OutputError(f"{error}; {gradient_free_attacks_hint(box)}") from None
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise OutputError(f"the model gives no gradient of its input; {gradient_free_attacks_hint(box)}") from error
        if "use_reentrant" in str(error):
            raise OutputError(f"{REENTRANT_CHECKPOINT_MESSAGE}; {gradient_free_attacks_hint(box)}") from error
        raise


def gradient_free_attacks_hint(box: Box) -> str:
    """The attacks that need no gradient and take such inputs."""
    is_image = isinstance(box.inputs, Pixels)
    *names, last = [card.key for card in cards() if card.gradient_free and (is_image or "pixels" not in card.needs)]
    return f"{', '.join(names)} and {last} attack models without gradients"
