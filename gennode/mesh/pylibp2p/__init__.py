"""py-libp2p, in a thread of its own."""
