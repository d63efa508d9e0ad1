"""The worker's side of sessions: steps taken in, passed on, retained and fed to others."""
