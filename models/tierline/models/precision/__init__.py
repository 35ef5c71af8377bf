"""A Section in a precision below float32: the same inputs and outputs, other arithmetic between them.

Design time only: nodes load the files that these make, so a node needs no more packages than for float32.
"""
