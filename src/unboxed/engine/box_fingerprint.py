"""A digest of what determines a box's outputs, by which results that are kept are told from stale ones."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, is_dataclass

from ..atomic_write import encode_utf8
from ..box import Box
from ..checkpointing import tensor_digest


def box_fingerprint(box: Box) -> bytes:
    """A digest of what determines the box's outputs: its modules, weights, buffers and inputs."""
    inputs = astuple(box.inputs) if is_dataclass(box.inputs) else box.inputs  # their repr leaves out what is long
    digest = hashlib.sha256(encode_utf8(repr((str(box), inputs, repr(box.model)))))
    for name, value in (*box.model.named_parameters(), *box.model.named_buffers()):
        digest.update(f"{name} {tensor_digest(value)}".encode())
    return digest.digest()
