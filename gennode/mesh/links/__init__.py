"""Messages to and from peers, none lost and none doubled, within limits."""
