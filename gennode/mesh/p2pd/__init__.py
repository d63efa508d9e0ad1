"""go-libp2p, as a daemon that we start, drive and start again."""
