"""Phase one: who hosts which layers, over a whole pool."""
