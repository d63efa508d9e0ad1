"""Which precision, batch and chunk a machine does best with, learned from what it ran before."""
