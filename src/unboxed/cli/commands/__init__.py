"""One command per file, in the order in which `--help` lists them. Heavy imports happen inside, so that it is fast.

What two commands share moves into the folder above.
"""

# ruff: noqa: I001 - the order of the list
from . import demo as demo
from . import report as report
from . import predict as predict
from . import explain as explain
from . import attack as attack
from . import influence as influence
from . import probe as probe
from . import concepts as concepts
from . import dissect as dissect
from . import words as words
from . import train as train
from . import shortcut as shortcut
from . import doctor as doctor
from . import methods as methods
