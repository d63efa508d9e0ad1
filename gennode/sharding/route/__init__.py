"""Phase two: the chain of workers for one session."""
