"""The tables of answers in words: what works on a model, the ranking of methods, a model's layers."""

from __future__ import annotations

import math

from ...box import Box
from ...checks.ranking import MethodRanking
from ...diagnosis import Diagnosis
from ..text_tables import TextTable, text_tables


@text_tables.register(Box)
def _box_tables(box: Box) -> list[TextTable]:
    head, *_ = repr(box).splitlines()
    columns, *rows = box.layers.cells()
    return [TextTable(head, columns, rows)]


@text_tables.register(Diagnosis)
def _diagnosis_tables(diagnosis: Diagnosis) -> list[TextTable]:
    families = [(f, f"{len(w)} of {n} work", ", ".join(w)) for f, w, n in diagnosis.working_by_family()]
    tables = [
        TextTable("The model", (), [*diagnosis.model.items()]),
        TextTable(f"{len(diagnosis.working)} of {len(diagnosis.methods)} methods work", (), families),
    ]
    refused = [(name, why) for name, why in diagnosis.refused.items()]
    noted = [(c.method, "; ".join(c.notes)) for c in diagnosis.methods if c.works and c.notes]
    tables += [TextTable("Do not work", ("method", "why, and what to do"), refused)] * bool(refused)
    return tables + [TextTable("Work, with a note", ("method", "note"), noted)] * bool(noted)


@text_tables.register(MethodRanking)
def _ranking_tables(ranking: MethodRanking) -> list[TextTable]:
    gains = [verdict.figures.get("removal", math.nan) for verdict in ranking.values()]
    rows = [
        (v.method, v.badge, v.reason, "" if math.isnan(gain) else f"{gain:.2f}")
        for v, gain in zip(ranking.values(), gains, strict=True)
    ]
    notes = [(note,) for note in ranking.notes()]
    tables = [TextTable("", ("method", "verdict", "reason", "relevance gain"), rows)]
    return tables + [TextTable("", (), notes)] * bool(notes)
