"""What the words of a sentence say without their order: the baseline of every encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.intervals import GRADING_LEVEL, Interval, proportion_interval
from ..engine.results import ResultMixin
from .probing_tasks import ProbingTask

MIN_SENTENCES_WITH_WORD = 2  # of the training sentences; rarer words are left out
MAX_BAG_OF_WORDS_ITERATIONS = 1000


@dataclass(frozen=True, eq=False, repr=False)
class BagOfWords(ResultMixin):
    """Logistic regression on the counts of words.

    Attributes:
        accuracy: The share of test sentences whose class is read, with its interval at 90 %.
        correct: (M,) bool of the test sentences.
        n_words: Words that are counted: those of two training sentences or more, in lower case.
    """

    accuracy: Interval
    correct: Tensor
    n_words: int

    @classmethod
    def fit(cls, task: ProbingTask) -> BagOfWords:
        """Fitted on the training sentences, with scikit-learn's default penalty (C = 1)."""
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression

        train, test = task.rows("tr"), task.rows("te")
        sentences = [task.sentences[i] for i in train]
        counter = CountVectorizer(tokenizer=str.split, token_pattern=None, min_df=_min_sentences(sentences))
        counts = counter.fit_transform(sentences)
        model = LogisticRegression(max_iter=MAX_BAG_OF_WORDS_ITERATIONS).fit(counts, task.y[train].numpy())
        predicted = torch.from_numpy(model.predict(counter.transform([task.sentences[i] for i in test])))
        correct = predicted == task.y[test]
        return cls(proportion_interval(correct, GRADING_LEVEL), correct, counts.shape[1])


def _min_sentences(sentences: list[str]) -> int:
    """2, or 1 where no word is in two sentences."""
    words = [word for sentence in sentences for word in {*sentence.lower().split()}]
    return MIN_SENTENCES_WITH_WORD if len(set(words)) < len(words) else 1
