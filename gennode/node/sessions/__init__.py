"""The owner's side of sessions: routes chosen, kept alive, handed over, resumed."""
