"""Attribute to the input by perturbation: masks and an estimator.

What two perturbation methods share moves in here.
"""
