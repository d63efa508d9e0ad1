"""What peers say: ids, messages, frames, activation codecs, signatures. Pure."""
