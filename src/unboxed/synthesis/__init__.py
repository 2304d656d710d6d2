"""What is it looking for?"""

from .class_image import ClassImages as ClassImages
from .class_image import class_image as class_image
from .morph import Morph as Morph
from .morph import morph as morph
