"""`recipes`: what the library makes of common trainers and recipes, each beside the trainer's own loss and derivatives.

A recipe is a function of a folder that trains a tiny model for a few steps and gives a `Made`: the chain, and the loss
that was trained as a function without arguments, by the trainer's own code. To add one, write the function, and put it
into `RECIPES` of its file.
"""
