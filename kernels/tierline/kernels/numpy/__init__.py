"""The codecs' arithmetic in NumPy, a module per codec: the readable oracle of the compiled kernels, and their fallback.

Every row of a batch is coded on its own, with IEEE float32 operations in the order written (no contracted
multiply-adds, order-free reductions), so that other implementations can match these bytes exactly. Words are
little-endian. `src/` holds the same arithmetic for compilers.

Shape legend: B batch, V values in one row, P bytes of a packed row.
"""
