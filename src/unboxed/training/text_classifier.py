"""A small transformer trained to classify short texts, which `unboxed demo --text` and benchmarks explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MissingPackageError
from ..model.state import forking_rngs_with_lock
from ..validation import check_int, valid_seed

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BATCH_TEXTS, LEARNING_RATE = 64, 2e-3


def word_tokenizer(words: Sequence[str], *, max_length: int = 64) -> Any:
    """A tokenizer of transformers for these words, as BERT's: [CLS] words [SEP]. Raises MissingPackageError."""
    try:
        import tokenizers
        import transformers
        from tokenizers import models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise MissingPackageError("text classifiers need transformers: pip install transformers") from error
    names = [*SPECIAL_TOKENS, *(w for w in words if w not in SPECIAL_TOKENS)]
    made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    added = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=added
    )
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, model_max_length=max_length, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def small_bert(n_words: int, classes: Sequence[str], *, max_length: int = 64, seed: int = 0) -> nn.Module:
    """A BERT of two layers, 64 wide, with random weights by the seed. Raises MissingPackageError."""
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("text classifiers need transformers: pip install transformers") from error
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "max_position_embeddings": max_length, "vocab_size": n_words}
    sizes |= {"num_labels": len(classes), "id2label": dict(enumerate(classes))}
    config = transformers.BertConfig(**sizes)
    with forking_rngs_with_lock(valid_seed(seed), torch.get_default_device()):
        model: nn.Module = transformers.BertForSequenceClassification(config)
        return model.eval()


def train_text_classifier(
    texts: Sequence[str], labels: Sequence[int], classes: Sequence[str], *, words: Sequence[str] | None = None,
    n_epochs: int = 6, seed: int = 0,
) -> tuple[nn.Module, Any]:  # fmt: skip
    """A small BERT trained on texts, and its tokenizer: seconds for a thousand short ones.

    Args:
        texts: The texts.
        labels: Their classes (n,).
        classes: Names of the classes.
        words: The vocabulary. None takes the words of the texts.
        n_epochs: Passes over the texts.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        (model, tokenizer), as `from_pretrained` of transformers gives them.

    Raises:
        MissingPackageError: without transformers.

    Example:
        >>> import unboxed as ub
        >>> from unboxed.training.text_classifier import train_text_classifier
        >>> made = ub.data.reviews(64)
        >>> model, tokenizer = train_text_classifier(made.texts, made.labels, made.classes, n_epochs=1)
        >>> ub.Box(model, ub.Tokens(tokenizer)).classes
        ('negative', 'positive')
    """
    n_epochs, seed = check_int("n_epochs", n_epochs, minimum=1), valid_seed(seed)
    vocabulary = sorted({w for text in texts for w in text.lower().split()}) if words is None else words
    tokenizer = word_tokenizer(vocabulary)
    model = small_bert(len(tokenizer), classes, seed=seed)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    with forking_rngs_with_lock(seed, torch.get_default_device()), torch.enable_grad():
        _fit(model, batch, torch.as_tensor(list(labels)), n_epochs)
    return model.eval(), tokenizer


def _fit(model: nn.Module, batch: Any, labels: Tensor, n_epochs: int) -> None:
    """Adam with a learning rate that falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    n_steps = n_epochs * math.ceil(len(labels) / BATCH_TEXTS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, n_steps)
    model.train()
    for _ in range(n_epochs):
        order = torch.randperm(len(labels))
        for rows in torch.split(order, BATCH_TEXTS):
            loss = F.cross_entropy(model(**{name: value[rows] for name, value in batch.items()}).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
