"""What a placement achieves, whoever made it."""
