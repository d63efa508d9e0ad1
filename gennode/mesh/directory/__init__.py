"""Who is alive and what they host; whom to ask; sans-IO."""
