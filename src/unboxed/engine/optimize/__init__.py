"""Optimize an input by gradient ascent: the loop, parameterizations, constraints, optimizers.

What two methods of synthesis or attack share moves in here.
"""
