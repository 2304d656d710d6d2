"""What goes into a model: images, tables, several of them at once.

A kind of input is a file here; what two kinds share moves into `base`.
"""
