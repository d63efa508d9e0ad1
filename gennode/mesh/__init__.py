"""Reaching peers: transports behind one seam, links that survive resets, the directory."""
