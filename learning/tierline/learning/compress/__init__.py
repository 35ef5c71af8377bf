"""Updates made smaller on their way. One file per Compressor, see `core.catalog` and `learning.compressor`."""
