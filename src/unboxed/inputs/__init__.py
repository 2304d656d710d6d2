"""What a model takes: images, tables, several of them at once.

Each kind of input is a file here; what two kinds share moves into `base`.
"""
