"""Integration: the product, as its users start it, against stock initiators. See README.md in this folder."""
