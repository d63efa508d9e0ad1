"""Any decoder's layers, computed by the transformers library's own classes."""
