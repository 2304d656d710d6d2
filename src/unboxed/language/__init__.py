"""What does it know of words? Word vectors, their neighbors and analogies, maps, and the bias that is in them.

A question about words is a file here; what a second one needs of it moves into a file that starts with _. Word vectors
have no model to open, so these are plain functions of `WordVectors`, or of any function from texts to vectors;
`probe_sentences` takes models, too. Of language models: `continuation`, which makes a target of given or generated
words.
"""

from ..namespaces import dir_of_exports, getattr_by_alias
from .analogies import BiasedAnalogy as BiasedAnalogy
from .analogies import biased_analogies as biased_analogies
from .attention import AttentionByHead as AttentionByHead
from .attention import HeadAblation as HeadAblation
from .attention import attention as attention
from .attention import head_ablation as head_ablation
from .bias import BiasDirection as BiasDirection
from .bias import BiasWords as BiasWords
from .bias import bias_direction as bias_direction
from .bias import direct_bias as direct_bias
from .bias import gender_words as gender_words
from .bias import indirect_bias as indirect_bias
from .continuation import Continuation as Continuation
from .continuation import ContinuationAttribution as ContinuationAttribution
from .continuation import attribute_continuation as attribute_continuation
from .continuation import continuation as continuation
from .debias import Debiased as Debiased
from .debias import hard_debias as hard_debias
from .debias import soft_debias as soft_debias
from .files import load_vectors as load_vectors
from .lens import Lens as Lens
from .lens import logit_lens as logit_lens
from .lens import tuned_lens as tuned_lens
from .probing_tasks import ProbingTask as ProbingTask
from .probing_tasks import load_probing_task as load_probing_task
from .remaining_bias import BiasMeasures as BiasMeasures
from .remaining_bias import RemainingBias as RemainingBias
from .remaining_bias import remaining_bias as remaining_bias
from .seat import seat as seat
from .seat import sentences as sentences
from .sentence_probing import SentenceProbing as SentenceProbing
from .sentence_probing import probe_sentences as probe_sentences
from .vectors import WordVectors as WordVectors
from .weat import WEAT as WEAT
from .weat import WEATs as WEATs
from .weat import WordTest as WordTest
from .weat import published_tests as published_tests
from .weat import run_tests as run_tests
from .weat import weat as weat
from .word_map import WordMap as WordMap
from .word_map import word_map as word_map

__dir__ = dir_of_exports(__name__)
__getattr__ = getattr_by_alias(__name__)
