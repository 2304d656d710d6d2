"""Trainings that can be run again, exactly, and differentiated through.

What differentiates through a training, or retrains with other weights of the examples, moves in here.
"""
